"""Predictors: the contract (`base`), the registry `PREDICTORS`, and ours, `expert_predictor`.

Ours keeps a `prediction_state` for each open workflow, and names the agents of its forecasts in `agent_forecasts`.
`learnt_events` says how far workflows were learnt from before a restart, `explanation` is why a forecast is what it is, and
`warm_up` compiles a predictor's code before it is needed.
"""

from collections.abc import Sequence

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.registry import Registry
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.predictor.base import Predictor

__all__ = ["PREDICTORS", "Predictor"]

PREDICTORS: Registry[Predictor] = Registry("predictor.model")


@PREDICTORS.register("mixture")
def _mixture(config: PredictorConfig) -> Predictor:
    return _of_experts(config, [name.strip() for name in config.experts.split(",")])


def _register_alone(expert: str) -> None:
    @PREDICTORS.register(expert)
    def make(config: PredictorConfig) -> Predictor:
        return _of_experts(config, [expert])


def _of_experts(config: PredictorConfig, names: Sequence[str]) -> Predictor:
    from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor

    return ExpertPredictor(config, names)


for _name in EXPERTS.names():
    _register_alone(_name)
