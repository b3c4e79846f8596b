"""The network of PBKV (arXiv 2605.06472) as an expert: trained now and then on workflows that have ended, by a job.

The latest workflows are kept. When enough of them are new, a job is due that trains a network from scratch. The expert goes on
with the one it has, and takes the new one only if that forecasts the latest workflows better. Until the first it abstains.
"""

import logging
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.jit import jit
from pbkv_cluster.predictor_service.network.examples import Example, Features, batch_of, features
from pbkv_cluster.predictor_service.network.inference import Model
from pbkv_cluster.predictor_service.network.job import NetworkJob, Outcome, packed
from pbkv_cluster.predictor_service.network.model import Shape
from pbkv_cluster.predictor_service.network.weights import Weights
from pbkv_cluster.predictor_service.workflow.situation import Situation

log = logging.getLogger(__name__)


MAX_NEW = 200  # workflows until the next training
MAX_WORKFLOWS = 1000  # kept
MAX_EXAMPLES = 40_000  # in these

_MIN_WORKFLOWS = 8  # for a first training
_GROWTH = 1.5  # of the workflows seen, until the next training
_HELD_BACK_EVERY = 6  # one in so many workflows is held back
_UNKNOWN = 1e-3  # probability of an agent that the network does not know
_SEED = 0


class NetworkExpert(Expert[Features]):
    """One workload's network, and the workflows to train the next one on."""

    learns_workflows: ClassVar[bool] = True

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._positions = config.network_positions
        self._workflows: deque[tuple[bytes, int]] = deque()  # the latest, each with its number of examples
        self._examples = 0
        self._seen = 0  # workflows that have ended
        self._trained_at = 0  # of these, when a training was last due
        self._due_at = _MIN_WORKFLOWS  # of these, when the next is due
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
            probabilities = model.forecast(batch_of([features[at] for at in known], model.nodes, model.weights.hidden))
            columns = np.array([self.labels.column(label) for label in model.weights.labels])
            _copy(probabilities, columns, np.array(known), found)
        return found

    def learn(self, examples: Sequence[TrainingExample[Features]]) -> None:
        """Does nothing: the network learns from whole workflows."""

    def learn_workflow(self, examples: Sequence[TrainingExample[Features]]) -> None:
        names = self.labels.names
        labelled = [Example(each.features, tuple(names[target] for target in each.targets)) for each in examples]
        if not labelled or len(labelled) > MAX_EXAMPLES:
            return
        self._workflows.append((packed(labelled), len(labelled)))
        self._examples += len(labelled)
        self._seen += 1
        while len(self._workflows) > MAX_WORKFLOWS or self._examples > MAX_EXAMPLES:
            self._examples -= self._workflows.popleft()[1]

    def training_due(self, now: bool) -> NetworkJob | None:
        new = self._seen - self._trained_at
        if self._training or not new or len(self._workflows) < _MIN_WORKFLOWS or (self._seen < self._due_at and not now):
            return None
        self._training = True
        self._trained_at = self._seen
        self._due_at = min(int(_GROWTH * self._seen), self._seen + MAX_NEW)
        held_back = max(1, min(new, len(self._workflows) // _HELD_BACK_EVERY))
        workflows = tuple(workflow for workflow, _ in self._workflows)
        present = None if self._model is None else self._model.weights
        return NetworkJob(workflows, held_back, self.horizon, self._positions, _SEED, present)

    def training_done(self, result: Any) -> None:
        self._training = False
        if result is None:
            return
        assert isinstance(result, Outcome)
        taken = "not taken" if result.network is None else f"taken, {len(result.network.labels) - 1} agents"
        log.info("trained a network, %s: log loss %.3f, was %.3f", taken, result.loss, result.present_loss)
        if result.network is not None:
            self._model = Model(result.network)

    def renumber(self, columns: Sequence[int]) -> None:
        """Does nothing: the network knows agents by their labels."""

    def dump(self) -> dict[str, Any]:
        return {"network": None if self._model is None else self._model.weights.dump()}

    def restore(self, state: dict[str, Any]) -> None:
        network = state.get("network", False)
        if network is not None and not isinstance(network, dict):
            raise ValueError("it holds no network")
        self._model = None if network is None else Model(Weights.restore(network, self.horizon))


@jit
def _copy(probabilities: Floats, columns: npt.NDArray[np.intp], rows: npt.NDArray[np.intp], found: Floats) -> None:
    """Copies a network's probabilities [rows, K, nodes] to the given rows of `found`, and the nodes' columns (-1: none)."""
    for at in range(len(rows)):
        for step in range(probabilities.shape[1]):
            row = found[rows[at], step]
            row[:] = _UNKNOWN
            for node in range(len(columns)):
                if columns[node] >= 0:
                    row[columns[node]] = probabilities[at, step, node]
            row /= row.sum()


@cache
def _compile() -> None:
    """Compiles what only a network calls, at start-up instead of after the first training."""
    weights = Weights.zeros(Shape(nodes=1, horizon=1, hidden=0, positions=True))
    model = Model(weights)
    found = model.forecast(batch_of([features(Situation())], model.nodes, weights.hidden))
    _copy(found, np.array([0]), np.array([0]), np.zeros_like(found))
