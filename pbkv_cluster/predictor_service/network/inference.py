"""Forecasts of a trained network in compiled loops: for some hundred workflows, torch's operators would take longer.

The sums are those of `Network.forward`, in another order. What depends on one agent alone is computed beforehand: the agent's
embedding has gone through the inner layer already.
"""

import numpy as np
import numpy.typing as npt
import torch

from pbkv_cluster.predictor_service.jit import jit
from pbkv_cluster.predictor_service.network.examples import COUNTS, GROUPS, Batch, Floats, Ints
from pbkv_cluster.predictor_service.network.weights import Weights

_EPSILON = 1e-5  # of the layer normalisation, as in torch


class Model:
    """A network in use."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes = {label: node for node, label in enumerate(weights.labels)}
        network = weights.network()
        with torch.inference_mode():
            tables = network.tables(torch.from_numpy(weights.edges))
            nodes, scores, distances, values = (np.ascontiguousarray(each.numpy()) for each in tables)
        self._scores, self._distances, self._values = scores, distances, values
        arrays = weights.arrays
        self._tokens = arrays["tokens.weight"]
        inner = np.ascontiguousarray(arrays["inner.weight"].T)  # [width, _WIDE]
        width = nodes.shape[1]
        self._node_inner: Floats = nodes @ inner[:width] + arrays["inner.bias"]
        self._counts = COUNTS if weights.positions else 0  # of a situation that are read
        read = values.shape[0] * values.shape[2] + GROUPS * self._tokens.shape[1] + self._counts + 1
        self._inner = inner[width : width + read]
        self._state: Floats | None = None
        if weights.hidden:
            self._state = arrays["state.weight"].T @ inner[width + read :]
            self._node_inner += arrays["state.bias"] @ inner[width + read :]
        self._outer, self._bias = np.ascontiguousarray(arrays["outer.weight"].T), arrays["outer.bias"]

    def forecast(self, batch: Batch) -> Floats:
        """Probabilities [N, K, nodes]. The latest agents must be known to the network."""
        size, (heads, rows, head) = len(batch.agents), self._values.shape
        shares = np.zeros((heads, size, rows), dtype=np.float32)
        _attend(batch.agents, self._scores, self._distances, shares)
        read = np.empty((size, len(self._inner)), dtype=np.float32)
        read[:, : heads * head] = (shares @ self._values).transpose(1, 0, 2).reshape(size, -1)
        _read(*batch[1:5], self._tokens, self._counts, heads * head, read)
        inner: Floats = read @ self._inner
        inner += self._node_inner[batch.agents[:, 0]]
        if self._state is not None:
            inner += _normed(batch.hidden.astype(np.float32)) @ self._state
        np.maximum(inner, 0.0, out=inner)
        logits: Floats = inner @ self._outer
        logits += self._bias
        probabilities = logits.reshape(size, self.weights.horizon, -1)
        _softmax(probabilities)
        return probabilities


def _normed(hidden: Floats) -> Floats:
    """Layer normalisation (Ba, Kiros, Hinton, 2016)."""
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    scaled: Floats = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(_EPSILON))
    return scaled


@jit
def _attend(agents: Ints, scores: Floats, distances: Floats, shares: Floats) -> None:
    """Writes the share of attention that each head gives to each agent, and after the agents to each distance, into zeros."""
    heads, _, rows = shares.shape
    positions = agents.shape[1]
    nodes = rows - positions
    for at in range(len(agents)):
        current = agents[at, 0]
        for each in range(heads):
            share = shares[each, at]
            largest = np.float32(-np.inf)
            for position in range(positions):
                if agents[at, position] >= 0:
                    score = scores[current, agents[at, position], each] + distances[current, position, each]
                    share[nodes + position] = score
                    largest = max(largest, score)
            total = np.float32(0.0)
            for position in range(positions):
                if agents[at, position] >= 0:
                    share[nodes + position] = np.exp(share[nodes + position] - largest)
                    total += share[nodes + position]
            for position in range(positions):
                if agents[at, position] >= 0:
                    share[nodes + position] /= total
                    share[agents[at, position]] += share[nodes + position]


@jit
def _read(
    numbers: Floats,
    tokens: npt.NDArray[np.int16],
    offsets: Ints,
    scales: Floats,
    embedding: Floats,
    counts: int,
    start: int,
    read: Floats,
) -> None:
    """Writes what the inner layer reads after the output of attention, from column `start` on: tokens by group, and numbers."""
    width = embedding.shape[1]
    groups = len(offsets) // len(numbers)
    for at in range(len(numbers)):
        for group in range(groups):
            first = at * groups + group
            end = offsets[first + 1] if first + 1 < len(offsets) else len(tokens)
            part = read[at, start + group * width : start + (group + 1) * width]
            part[:] = 0.0
            for each in range(offsets[first], end):
                word = embedding[tokens[each]]
                for number in range(width):
                    part[number] += word[number]
            part *= scales[first]
        after = start + groups * width
        for number in range(counts):
            read[at, after + number] = numbers[at, number]
        read[at, after + counts] = numbers[at, -1]


@jit
def _softmax(rows: Floats) -> None:
    """Replaces scores on the last axis by probabilities."""
    for at in range(rows.shape[0]):
        for step in range(rows.shape[1]):
            row = rows[at, step]
            largest = row.max()
            total = np.float32(0.0)
            for column in range(len(row)):
                row[column] = np.exp(row[column] - largest)
                total += row[column]
            row /= total
