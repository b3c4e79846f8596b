"""Trains a network on finished workflows, and tells whether it forecasts the latest of them better than the one in use."""

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
from pbkv_cluster.predictor_service.network.model import MOST_HIDDEN, Network, Shape, most_nodes
from pbkv_cluster.predictor_service.network.weights import Weights, inputs_of
from pbkv_cluster.predictor_service.training.jobs import TrainingJob
from pbkv_cluster.predictor_service.workflow.situation import END

_ROUNDS = 40
_PATIENCE = 5  # rounds without a gain of at least `_STEP`, after which it stops
_STEP = 0.002  # nats
_LEAST = 10  # batches of a round; it takes in all examples at least once
_BATCH = 128
_RATE = 1.5e-3
_DECAY = 0.01
_SMOOTHING = 0.03  # of labels
_WARM_UP = 50  # batches
_GAIN = 0.01  # nats that a new network must be better by
_FLOOR = 1e-4
_CHUNK = 2048


class Outcome(NamedTuple):
    """What came of a training."""

    network: Weights | None  # None: it is no better than the present one
    loss: float  # of the new network, in nats
    present: float  # of the one in use, or, without one, of what comes on average


@dataclass(frozen=True, slots=True)
class NetworkJob(TrainingJob[Outcome]):
    """One training."""

    workflows: tuple[bytes, ...]  # from `packed`, oldest first
    held_back: int  # of them, the latest: they are not trained on, but tell when to stop and what is better
    horizon: int
    positions: bool
    seed: int
    present: Weights | None  # the network in use

    def run(self) -> Outcome:
        workflows = [unpacked(each) for each in self.workflows]
        old = [example for workflow in workflows[: -self.held_back] for example in workflow]
        new = [example for workflow in workflows[-self.held_back :] for example in workflow]
        with _alone(self.seed):
            weights, loss = self._train(old, new)
            present = _average_loss(old, new) if self.present is None else _loss(Model(self.present), new)
        return Outcome(weights if loss < present - _GAIN else None, loss, present)

    def _train(self, old: Sequence[Example], new: Sequence[Example]) -> tuple[Weights, float]:
        """The network of the best round, and its loss."""
        labels = _labels(old, most_nodes(self.horizon))
        nodes = {label: node for node, label in enumerate(labels)}
        known = [example for example in old if example.features.current in nodes]
        edges = _edges(known, nodes)
        shape = Shape(len(labels), self.horizon, _hidden(known), self.positions)
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
            if loss < level - _STEP:
                level, waited = loss, 0
            elif waited == _PATIENCE:
                break
        assert best is not None, "no loss is infinite"
        return best, lowest


class _Fit:
    """AdamW with a rate that falls linearly over all rounds."""

    def __init__(self, shape: Shape, examples: Sequence[Example], nodes: dict[str, int], edges: Floats, seed: int) -> None:
        self.network = Network(shape)
        self._examples, self._nodes = examples, nodes
        self._targets = torch.from_numpy(targets_of(examples, nodes))
        self._edges = torch.from_numpy(edges)
        self._draws = np.random.default_rng(seed)
        tables = [each for each in self.network.parameters() if each.ndim > 1]
        vectors = [each for each in self.network.parameters() if each.ndim <= 1]
        groups = [{"params": tables, "weight_decay": _DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=_RATE, fused=True)
        self._repeats = -(-_LEAST // -(-len(examples) // _BATCH))
        steps = _ROUNDS * self._repeats * -(-len(examples) // _BATCH)
        self._rate = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: min((step + 1) / _WARM_UP, max(0.02, 1.0 - step / steps))
        )

    def round(self) -> None:
        """Takes in all examples, once or more often."""
        self.network.train()
        for _ in range(self._repeats):
            order = self._draws.permutation(len(self._examples))
            for start in range(0, len(order), _BATCH):
                self._step(order[start : start + _BATCH])

    def _step(self, chosen: Ints) -> None:
        batch = batch_of([self._examples[at].features for at in chosen], self._nodes, self.network.shape.hidden)
        logits = self.network(inputs_of(batch), self.network.tables(self._edges))
        targets = self._targets[chosen].flatten()
        # A mean over those that are known: there may be none.
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=-1, reduction="sum", label_smoothing=_SMOOTHING
        )
        loss = loss / (targets >= 0).sum().clamp(min=1)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._rate.step()


def packed(examples: Sequence[Example]) -> bytes:
    """A workflow as bytes: some 400 for each example, which cost little to hand to another process."""
    return pickle.dumps([(*example,) for example in examples], protocol=pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> list[Example]:
    """What `packed` was given. Only for bytes of one's own: they are trusted."""
    return [Example(*each) for each in pickle.loads(data)]


def _labels(examples: Sequence[Example], most: int) -> tuple[str, ...]:
    """END, and the agents that were called most."""
    seen = Counter(example.features.current for example in examples)
    seen.update(example.targets[0] for example in examples)
    del seen[END]
    return END, *sorted(label for label, _ in seen.most_common(most - 1))


def _edges(examples: Sequence[Example], nodes: dict[str, int]) -> Floats:
    edges: Floats = np.zeros((len(nodes), len(nodes)), dtype=np.float32)
    for features, targets in examples:
        if not features.finished and targets[0] in nodes:  # once for each step
            edges[nodes[features.current], nodes[targets[0]]] += 1.0
    return edges


def _hidden(examples: Sequence[Example]) -> int:
    """The commonest size of hidden states."""
    sizes = Counter(len(example.features.hidden) // 2 for example in examples)
    del sizes[0]
    size = sizes.most_common(1)[0][0] if sizes else 0
    return size if size <= MOST_HIDDEN else 0


def _loss(model: Model, examples: Sequence[Example]) -> float:
    """Mean log loss in nats. What the model does not know has a chance of `_FLOOR`."""
    chances = np.full((len(examples), model.weights.horizon), _FLOOR)
    known = [at for at, example in enumerate(examples) if example.features.current in model.nodes]
    for start in range(0, len(known), _CHUNK):
        chosen = known[start : start + _CHUNK]
        found = model.forecast(batch_of([examples[at].features for at in chosen], model.nodes, model.weights.hidden))
        chances[chosen] = _chances_of(found, targets_of([examples[at] for at in chosen], model.nodes))
    return float(-np.log(np.maximum(chances, _FLOOR)).mean())


def _average_loss(old: Sequence[Example], new: Sequence[Example]) -> float:
    """Of a forecast that is always the same: how often each label came at each step."""
    labels = _labels(old, len(old))
    nodes = {label: node for node, label in enumerate(labels)}
    came, targets = targets_of(old, nodes), targets_of(new, nodes)
    counts = np.stack([np.bincount(column[column >= 0], minlength=len(labels)) for column in came.T])
    shares = (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    found = np.broadcast_to(shares, (len(new), *shares.shape))
    return float(-np.log(np.maximum(_chances_of(found, targets), _FLOOR)).mean())


def _chances_of(found: Floats, targets: Ints) -> Floats:
    chances: Floats = np.take_along_axis(found, np.maximum(targets, 0)[:, :, None], axis=2)[:, :, 0]
    return np.where(targets >= 0, chances, np.float32(0.0))


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread, so that sums come out the same anywhere, and chance from the seed; both are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
