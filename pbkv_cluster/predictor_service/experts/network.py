"""The network of PBKV (arXiv 2605.06472) as an expert: trained on finished workflows, now and then, never on the way of a
forecast.

Finished workflows wait in a ring. When there are enough new ones, a job is due that trains a network from nothing; the expert
goes on with the one it has, and takes the new one only if that forecasts the latest workflows better. It abstains until then.
"""

import logging
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.compiled import compiled
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, Lesson
from pbkv_cluster.predictor_service.network.examples import Example, Features, batch_of, features
from pbkv_cluster.predictor_service.network.inference import Model
from pbkv_cluster.predictor_service.network.job import NetworkJob, Outcome, packed
from pbkv_cluster.predictor_service.network.model import Shape
from pbkv_cluster.predictor_service.network.weights import Weights
from pbkv_cluster.predictor_service.workflow.situation import Situation
from pbkv_cluster.predictor_service.workload.labels import Labels

log = logging.getLogger(__name__)

_FIRST = 8  # workflows that a first network is trained on
_GROWTH = 1.5  # the next is due when there are so many times as many
_MOST_NEW = 200  # or so many more
_HELD_BACK = 6  # one in so many
_MOST_WORKFLOWS = 1000  # kept
_MOST_EXAMPLES = 40_000  # in them
_UNKNOWN = 1e-3  # chance of an agent that the network does not know
_SEED = 0


class NetworkExpert(Expert[Features]):
    """One workload's network, and the workflows that the next is trained on."""

    wants_whole: ClassVar[bool] = True

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._positions = config.network_positions
        self._ring: deque[tuple[bytes, int]] = deque()  # workflows, and how many examples each has
        self._examples = 0
        self._seen = 0  # workflows that have ended
        self._trained = 0  # of them, when a training was last due
        self._due = _FIRST
        self._training = False
        self._model: Model | None = None
        _compile()

    def features(self, situation: Situation) -> Features:
        return features(situation)

    def forecast(self, features: Sequence[Features]) -> Floats:
        found = np.zeros((len(features), self.horizon, len(self.labels)), dtype=np.float32)
        model = self._model
        if model is None:
            return found
        known = [at for at, each in enumerate(features) if each.current in model.nodes]
        if known:
            chances = model.forecast(batch_of([features[at] for at in known], model.nodes, model.weights.hidden))
            columns = np.array([self.labels.column(label) for label in model.weights.labels])
            _place(chances, columns, np.array(known), found)
        return found

    def learn(self, lessons: Sequence[Lesson[Features]]) -> None:
        """Nothing: it learns from whole workflows."""

    def ended(self, lessons: Sequence[Lesson[Features]]) -> None:
        names = self.labels.names
        examples = [Example(each.features, tuple(names[target] for target in each.targets)) for each in lessons]
        if not examples or len(examples) > _MOST_EXAMPLES:
            return
        self._ring.append((packed(examples), len(examples)))
        self._examples += len(examples)
        self._seen += 1
        while len(self._ring) > _MOST_WORKFLOWS or self._examples > _MOST_EXAMPLES:
            self._examples -= self._ring.popleft()[1]

    def training_due(self, now: bool) -> NetworkJob | None:
        new = self._seen - self._trained
        if self._training or not new or len(self._ring) < _FIRST or (self._seen < self._due and not now):
            return None
        self._training = True
        self._trained = self._seen
        self._due = min(int(_GROWTH * self._seen), self._seen + _MOST_NEW)
        held_back = max(1, min(new, len(self._ring) // _HELD_BACK))
        workflows = tuple(workflow for workflow, _ in self._ring)
        present = None if self._model is None else self._model.weights
        return NetworkJob(workflows, held_back, self.horizon, self._positions, _SEED, present)

    def trained(self, result: Any) -> None:
        self._training = False
        if result is None:
            return
        assert isinstance(result, Outcome)
        kept = "not taken" if result.network is None else f"taken, {len(result.network.labels) - 1} agents"
        log.info("trained a network, %s: log loss %.3f, was %.3f", kept, result.loss, result.present)
        if result.network is not None:
            self._model = Model(result.network)

    def keep(self, columns: Sequence[int]) -> None:
        """Nothing: the network goes by labels."""

    def dump(self) -> dict[str, Any]:
        return {"network": None if self._model is None else self._model.weights.dump()}

    def restore(self, state: dict[str, Any]) -> None:
        network = state.get("network", False)
        if network is not None and not isinstance(network, dict):
            raise ValueError("it holds no network")
        self._model = None if network is None else Model(Weights.restore(network, self.horizon))


@compiled
def _place(chances: Floats, columns: npt.NDArray[np.intp], rows: npt.NDArray[np.intp], found: Floats) -> None:
    """Writes a network's chances [rows, K, nodes] to the rows and the nodes' columns (-1: it has none) of `found`."""
    for at in range(len(rows)):
        for step in range(chances.shape[1]):
            row = found[rows[at], step]
            row[:] = _UNKNOWN
            for node in range(len(columns)):
                if columns[node] >= 0:
                    row[columns[node]] = chances[at, step, node]
            row /= row.sum()


@cache
def _compile() -> None:
    """Has that compiled which only a network calls: before the predictor serves, not when the first one has been trained."""
    weights = Weights.zeros(Shape(nodes=1, horizon=1, hidden=0, positions=True))
    model = Model(weights)
    chances = model.forecast(batch_of([features(Situation())], model.nodes, weights.hidden))
    _place(chances, np.array([0]), np.array([0]), np.zeros_like(chances))
