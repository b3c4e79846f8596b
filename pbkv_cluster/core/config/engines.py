"""What runs inside other engines, whose processes read it from the environment or from `PBKV_CONFIG`; vLLM as a worker."""

from typing import Any

import yaml
from pydantic import Field, field_validator

from pbkv_cluster.core.config.section import Section


class PluginsConfig(Section):
    """All that other engines load of ours."""

    any_version: bool = Field(False, description="run in versions of engines that were not tested (docs/integrations.md), too")


class VllmConfig(Section):
    """vLLM: as a worker of a cluster (`python` and `args`, with `engine.type: vllm`), and the eviction policy of its CPU tier.

    The policy's other parameters are those of `cache` and `predictor.prior`.
    """

    python: str = Field("", description="interpreter in whose environment vLLM is installed; empty: that of the cluster")
    args: dict[str, Any] = Field(
        {},
        description="vLLM's engine arguments by name, with underscores, beyond those that other settings decide",
    )

    predictor: str = Field(
        "", description="host:port of a running predictor, for forecasts and what is learnt; empty: vLLM learns on its own"
    )
    silence_s: float = Field(
        300.0, gt=0, description="seconds without a request after which a workflow has ended, if nobody tells its end"
    )
    max_workflows: int = Field(
        4096, ge=1, description="most workflows that are open; beyond that, the one silent for longest has ended"
    )

    @field_validator("args", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """In a variable or a flag, it is YAML: `{block_size: 32}`."""
        if not isinstance(value, str):
            return value
        try:
            return yaml.safe_load(value) or {}
        except yaml.YAMLError:
            raise ValueError("must be YAML, a mapping of engine arguments") from None
