"""The models that forecast, each of its own kind, behind one contract (`base`); `EXPERTS` names them.

`markov` counts transitions; `context_tree` counts what follows longer contexts; `step_graph` follows the graph that the client
declared; `linear` is a softmax regression over everything that is known; `network` is the network of PBKV. `labels` are the
outcomes that they forecast, and `mixture` joins their forecasts.
"""

from typing import Any

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.base import EXPERTS, Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels

__all__ = ["EXPERTS", "Expert", "Floats", "TrainingExample"]


@EXPERTS.register("markov")
def _markov(config: PredictorConfig, labels: Labels) -> Expert[Any]:
    from pbkv_cluster.predictor_service.experts.markov import MarkovExpert

    return MarkovExpert(config, labels)


@EXPERTS.register("context-tree")
def _context_tree(config: PredictorConfig, labels: Labels) -> Expert[Any]:
    from pbkv_cluster.predictor_service.experts.context_tree import ContextTree

    return ContextTree(config, labels)


@EXPERTS.register("step-graph")
def _step_graph(config: PredictorConfig, labels: Labels) -> Expert[Any]:
    from pbkv_cluster.predictor_service.experts.step_graph import StepGraphExpert

    return StepGraphExpert(config, labels)


@EXPERTS.register("linear")
def _linear(config: PredictorConfig, labels: Labels) -> Expert[Any]:
    from pbkv_cluster.predictor_service.experts.linear.expert import LinearExpert

    return LinearExpert(config, labels)


@EXPERTS.register("pbkv")
def _pbkv(config: PredictorConfig, labels: Labels) -> Expert[Any]:
    from pbkv_cluster.predictor_service.experts.network import NetworkExpert

    return NetworkExpert(config, labels)
