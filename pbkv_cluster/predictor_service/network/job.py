"""Trains a network on workflows that have ended, and compares it with the one in use on the latest of them."""

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pbkv_cluster.predictor_service.network.examples import Example, Floats, Ints, batch_of, targets_of
from pbkv_cluster.predictor_service.network.inference import Model
from pbkv_cluster.predictor_service.network.model import MAX_HIDDEN, Network, Shape, max_nodes
from pbkv_cluster.predictor_service.network.weights import Weights, inputs_of
from pbkv_cluster.predictor_service.training.jobs import TrainingJob
from pbkv_cluster.predictor_service.workflow.situation import END

_ROUNDS = 40
_PATIENCE = 5  # rounds without a gain of `_MIN_ROUND_GAIN`, after which training stops
_MIN_ROUND_GAIN = 0.002  # nats
_MIN_BATCHES = 10  # of a round, which takes in all examples at least once
_BATCH = 128  # examples
_LEARNING_RATE = 1.5e-3
_WEIGHT_DECAY = 0.01
_LABEL_SMOOTHING = 0.03
_WARM_UP = 50  # batches in which the learning rate grows
_MIN_GAIN = 0.01  # nats by which a new network must be better than the one in use
_FLOOR = 1e-4  # least probability in a log loss
_LOSS_BATCH = 2048  # examples


class Outcome(NamedTuple):
    """The result of a training."""

    network: Weights | None  # None: it is no better than the one in use
    loss: float  # of the new network, in nats
    present_loss: float  # of the one in use; without one, of a constant forecast


@dataclass(frozen=True, slots=True)
class NetworkJob(TrainingJob[Outcome]):
    """Trains one network from scratch."""

    workflows: tuple[bytes, ...]  # from `packed`, oldest first
    held_back: int  # of these, the latest: used only to tell when to stop and which network is better
    horizon: int
    positions: bool
    seed: int
    present: Weights | None  # the network in use

    def run(self) -> Outcome:
        workflows = [unpacked(each) for each in self.workflows]
        old = [example for workflow in workflows[: -self.held_back] for example in workflow]
        new = [example for workflow in workflows[-self.held_back :] for example in workflow]
        with _deterministic(self.seed):
            weights, loss = self._train(old, new)
            present = _average_loss(old, new) if self.present is None else _loss(Model(self.present), new)
        return Outcome(weights if loss < present - _MIN_GAIN else None, loss, present)

    def _train(self, old: Sequence[Example], new: Sequence[Example]) -> tuple[Weights, float]:
        """The network of the round with the lowest loss, and that loss."""
        labels = _labels(old, max_nodes(self.horizon))
        nodes = {label: node for node, label in enumerate(labels)}
        known = [example for example in old if example.features.current in nodes]
        edges = _edges(known, nodes)
        shape = Shape(len(labels), self.horizon, _hidden_size(known), self.positions)
        fit = _Fit(shape, known, nodes, edges, self.seed)
        best, lowest, level, waited = None, np.inf, np.inf, 0
        for _ in range(_ROUNDS):
            fit.round()
            arrays = {name: array.numpy().copy() for name, array in fit.network.state_dict().items()}
            weights = Weights(labels, edges, shape.hidden, shape.positions, self.horizon, arrays)
            loss = _loss(Model(weights), new)
            if loss < lowest:
                best, lowest = weights, loss
            waited += 1
            if loss < level - _MIN_ROUND_GAIN:
                level, waited = loss, 0
            elif waited == _PATIENCE:
                break
        assert best is not None, "every loss is finite"
        return best, lowest


class _Fit:
    """A network in training: AdamW, with a learning rate that falls linearly over all rounds."""

    def __init__(self, shape: Shape, examples: Sequence[Example], nodes: dict[str, int], edges: Floats, seed: int) -> None:
        self.network = Network(shape)
        self._examples, self._nodes = examples, nodes
        self._targets = torch.from_numpy(targets_of(examples, nodes))
        self._edges = torch.from_numpy(edges)
        self._draws = np.random.default_rng(seed)
        tables = [each for each in self.network.parameters() if each.ndim > 1]
        vectors = [each for each in self.network.parameters() if each.ndim <= 1]
        groups = [{"params": tables, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE, fused=True)
        self._repeats = -(-_MIN_BATCHES // -(-len(examples) // _BATCH))
        steps = _ROUNDS * self._repeats * -(-len(examples) // _BATCH)
        self._rate = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min((step + 1) / _WARM_UP, max(0.02, 1.0 - step / steps))
        )

    def round(self) -> None:
        """Trains on all examples, once or more often."""
        self.network.train()
        for _ in range(self._repeats):
            order = self._draws.permutation(len(self._examples))
            for start in range(0, len(order), _BATCH):
                self._step(order[start : start + _BATCH])

    def _step(self, chosen: Ints) -> None:
        batch = batch_of([self._examples[at].features for at in chosen], self._nodes, self.network.shape.hidden)
        logits = self.network(inputs_of(batch), self.network.tables(self._edges))
        targets = self._targets[chosen].flatten()
        # The mean over known targets, computed by hand since there may be none.
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=-1, reduction="sum", label_smoothing=_LABEL_SMOOTHING
        )
        loss = loss / (targets >= 0).sum().clamp(min=1)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._rate.step()


def packed(examples: Sequence[Example]) -> bytes:
    """A workflow as bytes, some 400 for each example, which are cheap to pass to another process."""
    return pickle.dumps([(*example,) for example in examples], protocol=pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> list[Example]:
    """The inverse of `packed`. NOTE: only for bytes made by this program, since unpickling runs what they say."""
    return [Example(*each) for each in pickle.loads(data)]


def _labels(examples: Sequence[Example], max_labels: int) -> tuple[str, ...]:
    """END, and the agents that were called most often."""
    calls = Counter(example.features.current for example in examples)
    calls.update(example.targets[0] for example in examples)
    del calls[END]
    return END, *sorted(label for label, _ in calls.most_common(max_labels - 1))


def _edges(examples: Sequence[Example], nodes: dict[str, int]) -> Floats:
    """Counts of transitions [V, V], from each row's agent."""
    edges: Floats = np.zeros((len(nodes), len(nodes)), dtype=np.float32)
    for features, targets in examples:
        if not features.finished and targets[0] in nodes:  # once for each step
            edges[nodes[features.current], nodes[targets[0]]] += 1.0
    return edges


def _hidden_size(examples: Sequence[Example]) -> int:
    """The most common size of hidden states, 0 if there are none or they are too large."""
    sizes = Counter(len(example.features.hidden) // 2 for example in examples)
    del sizes[0]
    size = sizes.most_common(1)[0][0] if sizes else 0
    return size if size <= MAX_HIDDEN else 0


def _loss(model: Model, examples: Sequence[Example]) -> float:
    """Mean log loss in nats. Labels that the model does not know have probability `_FLOOR`."""
    probabilities = np.full((len(examples), model.weights.horizon), _FLOOR)
    known = [at for at, example in enumerate(examples) if example.features.current in model.nodes]
    for start in range(0, len(known), _LOSS_BATCH):
        chosen = known[start : start + _LOSS_BATCH]
        found = model.forecast(batch_of([examples[at].features for at in chosen], model.nodes, model.weights.hidden))
        probabilities[chosen] = _target_probabilities(found, targets_of([examples[at] for at in chosen], model.nodes))
    return float(-np.log(np.maximum(probabilities, _FLOOR)).mean())


def _average_loss(old: Sequence[Example], new: Sequence[Example]) -> float:
    """Log loss on new examples of a constant forecast: the frequency of each label at each step of the old ones."""
    labels = _labels(old, len(old))
    nodes = {label: node for node, label in enumerate(labels)}
    old_targets, new_targets = targets_of(old, nodes), targets_of(new, nodes)
    counts = np.stack([np.bincount(column[column >= 0], minlength=len(labels)) for column in old_targets.T])
    shares = (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    found = np.broadcast_to(shares, (len(new), *shares.shape))
    return float(-np.log(np.maximum(_target_probabilities(found, new_targets), _FLOOR)).mean())


def _target_probabilities(found: Floats, targets: Ints) -> Floats:
    """Probabilities [N, K] of the targets, 0 for unknown ones."""
    probabilities: Floats = np.take_along_axis(found, np.maximum(targets, 0)[:, :, None], axis=2)[:, :, 0]
    return np.where(targets >= 0, probabilities, np.float32(0.0))


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Within it torch has one thread, so that sums are the same anywhere, and random numbers from the seed. Restores both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
