"""What runs inside other engines: settings of their processes, which read them from the environment or from `PBKV_CONFIG`."""

from pydantic import Field

from pbkv_cluster.core.config.section import Section


class PluginsConfig(Section):
    """All that other engines load of ours."""

    any_version: bool = Field(False, description="run in versions of engines that were not tested (docs/integrations.md), too")


class VllmConfig(Section):
    """The eviction policy of vLLM's CPU tier. Its other parameters are those of `cache` and `predictor.prior`."""

    predictor: str = Field(
        "", description="host:port of a running predictor, for forecasts and what is learnt; empty: vLLM learns on its own"
    )
    silence_s: float = Field(
        300.0, gt=0, description="seconds without a request after which a workflow has ended, if nobody tells its end"
    )
    max_workflows: int = Field(
        4096, ge=1, description="most workflows that are open; beyond that, the one silent for longest has ended"
    )
