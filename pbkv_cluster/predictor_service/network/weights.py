"""A trained network as plain arrays, as it is saved and sent between processes."""

from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch

from pbkv_cluster.predictor_service.network.examples import Batch, Floats
from pbkv_cluster.predictor_service.network.model import MAX_HIDDEN, Inputs, Network, Shape, max_nodes
from pbkv_cluster.predictor_service.workflow.situation import END


@dataclass(frozen=True, slots=True)
class Weights:
    """A network and its transition graph."""

    labels: tuple[str, ...]  # by node, END first
    edges: Floats  # [V, V] counts of transitions from each row's agent
    hidden: int  # size of a hidden state; 0: none is read
    positions: bool
    horizon: int
    arrays: dict[str, Floats]  # by name, as torch names them

    @property
    def shape(self) -> Shape:
        return Shape(len(self.labels), self.horizon, self.hidden, self.positions)

    def network(self) -> Network:
        """The network, ready to forecast.

        Raises:
            ValueError: the arrays are not of its shape.
        """
        network = _empty(self.shape)
        expected = network.state_dict()
        if self.arrays.keys() != expected.keys():
            raise ValueError("its arrays are of another network")
        for name, array in self.arrays.items():
            if array.shape != tuple(expected[name].shape) or not np.isfinite(array).all():
                raise ValueError(f"its array {name} does not fit")
        network.load_state_dict({name: torch.tensor(array) for name, array in self.arrays.items()}, assign=True)
        return network.eval()

    @classmethod
    def zeros(cls, shape: Shape) -> "Weights":
        """A network of zeros, for agents named by their numbers."""
        arrays = {name: np.zeros(tuple(each.shape), np.float32) for name, each in _empty(shape).state_dict().items()}
        labels = (END, *map(str, range(1, shape.nodes)))
        edges = np.zeros((shape.nodes, shape.nodes), np.float32)
        return cls(labels, edges, shape.hidden, shape.positions, shape.horizon, arrays)

    def dump(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels[1:]),
            "edges": self.edges,
            "hidden": self.hidden,
            "positions": self.positions,
            "arrays": self.arrays,
        }

    @classmethod
    def restore(cls, state: dict[str, Any], horizon: int) -> "Weights":
        """Raises:
        ValueError: `state` is not what `dump` gives, or damaged.
        """
        labels, arrays, edges = state.get("labels"), state.get("arrays"), state.get("edges")
        hidden, positions = state.get("hidden"), state.get("positions")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise ValueError("its labels must be names")
        if len(set(labels)) != len(labels) or len(labels) >= max_nodes(horizon):
            raise ValueError(f"its labels must be distinct, and fewer than {max_nodes(horizon)}")
        if type(hidden) is not int or not 0 <= hidden <= MAX_HIDDEN or type(positions) is not bool:
            raise ValueError("its sizes do not fit")
        square = (len(labels) + 1, len(labels) + 1)
        if not _is_floats(edges) or edges.shape != square or not (np.isfinite(edges) & (edges >= 0)).all():
            raise ValueError("its edges do not fit")
        if not isinstance(arrays, dict) or not all(_is_floats(array) for array in arrays.values()):
            raise ValueError("its arrays are missing")
        weights = cls((END, *labels), edges, hidden, positions, horizon, arrays)
        weights.network()
        return weights


def _empty(shape: Shape) -> Network:
    with torch.device("meta"):  # shapes only, no initial values
        return Network(shape)


def inputs_of(batch: Batch) -> Inputs:
    """A batch as tensors."""
    return Inputs(*(torch.from_numpy(array) for array in batch._replace(tokens=batch.tokens.astype(np.int64))))


def _is_floats(value: Any) -> TypeGuard[Floats]:
    return isinstance(value, np.ndarray) and value.dtype == np.float32
