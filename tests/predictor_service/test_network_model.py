"""The layers of the network against plain loops."""

import math
import random

import numpy as np
import pytest
import torch

from pbkv_cluster.predictor_service.network.examples import POSITIONS, batch_of, features
from pbkv_cluster.predictor_service.network.inference import Model
from pbkv_cluster.predictor_service.network.model import (
    MAX_HIDDEN,
    GraphSage,
    Network,
    PrefixAttention,
    Shape,
    max_nodes,
    parameters,
)
from pbkv_cluster.predictor_service.network.weights import Weights, inputs_of
from pbkv_cluster.predictor_service.workflow.situation import RECENT, Situation


def test_graphsage_is_the_mean_over_neighbours_weighted_by_edges() -> None:
    torch.manual_seed(0)
    layer = GraphSage(3, 2)
    nodes, edges = torch.randn(4, 3), [[0.0, 2.0, 1.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    found = layer(nodes, torch.tensor(edges))
    for at, row in enumerate(edges):
        mean = [sum(w * nodes[u][i].item() for u, w in enumerate(row)) / sum(row) if sum(row) else 0.0 for i in range(3)]
        for out in range(2):
            own = sum(layer.own.weight[out][i].item() * nodes[at][i].item() for i in range(3)) + layer.own.bias[out].item()
            neighbours = sum(layer.neighbours.weight[out][i].item() * mean[i] for i in range(3))
            assert found[at][out].item() == pytest.approx(max(0.0, own + neighbours), abs=1e-5)


@pytest.mark.parametrize("positions", [False, True])
def test_attention_reads_the_steps_that_are_there_and_no_padding(positions: bool) -> None:
    torch.manual_seed(0)
    layer = PrefixAttention(5, positions)
    nodes = torch.randn(3, 5)
    steps = [2, 0, 2, 1]
    agents = torch.tensor([steps + [-1] * (POSITIONS - len(steps)), [1] * POSITIONS])
    found = layer(layer.tables(nodes), agents)[0]
    heads, width = (8, 16)
    query = layer.query(nodes)[steps[0]].view(heads, width)
    for head in range(heads):
        scores, values = [], []
        for distance, agent in enumerate(steps):
            key, value = layer.key(nodes)[agent].view(heads, width)[head], layer.value(nodes)[agent].view(heads, width)[head]
            bias = 0.0
            if positions:
                key, value = key + layer.key_distances[distance, head], value + layer.value_distances[distance, head]
                bias = layer.bias[distance, head].item()
            scores.append((query[head] @ key).item() / math.sqrt(width) + bias)
            values.append(value)
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = sum(weight * value for weight, value in zip(weights.tolist(), values, strict=True))
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(found[head * width : (head + 1) * width], expected, atol=1e-5, rtol=1e-4)


def test_without_positions_the_order_of_the_steps_before_does_not_matter() -> None:
    torch.manual_seed(0)
    nodes = torch.randn(3, 5)
    agents = torch.tensor([[0, 1, 2, 2, *[-1] * (POSITIONS - 4)], [0, 2, 1, 2, *[-1] * (POSITIONS - 4)]])
    for positions in (False, True):
        layer = PrefixAttention(5, positions)
        one, other = layer(layer.tables(nodes), agents)
        assert torch.allclose(one, other, atol=1e-6) != positions


@pytest.mark.parametrize("horizon", [1, 3, 16])
def test_the_largest_network_is_small(horizon: int) -> None:
    assert parameters(Network(Shape(max_nodes(horizon), horizon, MAX_HIDDEN, True))) <= 500_000


def test_each_situation_is_read_by_itself() -> None:
    torch.manual_seed(0)
    nodes = {"": 0, "a": 1, "b": 2}
    situations = [
        features(Situation()),
        features(Situation(("a",) * RECENT, 30, 30, 30, (), (5, 6), (1, 2), (3,), True, np.ones(4, "<f2").tobytes())),
        features(Situation(("x", "b"), 2, 1, 1, (), (), (), (7,) * 50, False, b"of another size")),
    ]
    network = Network(Shape(3, 2, 4, True)).eval()
    with torch.inference_mode():
        tables = network.tables(torch.ones(3, 3))
        together = network(inputs_of(batch_of(situations, nodes, 4)), tables)
        alone = [network(inputs_of(batch_of([each], nodes, 4)), tables)[0] for each in situations]
    assert together.shape == (3, 2, 3)
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("hidden", [0, 4])
def test_forecasts_are_those_of_the_network(positions: bool, hidden: int) -> None:
    torch.manual_seed(1)
    network = Network(Shape(4, 3, hidden, positions)).eval()
    edges = torch.rand(4, 4)
    arrays = {name: each.numpy() for name, each in network.state_dict().items()}
    model = Model(Weights(("", "a", "b", "c"), edges.numpy(), hidden, positions, 3, arrays))
    draws = random.Random(2)
    situations = [features(_situation(draws)) for _ in range(40)]
    batch = batch_of([each for each in situations if each.current in model.nodes], model.nodes, hidden)
    with torch.inference_mode():
        expected = torch.softmax(network(inputs_of(batch), network.tables(edges)), dim=2)
    assert model.forecast(batch) == pytest.approx(expected.numpy(), rel=1e-4)


def _situation(draws: random.Random) -> Situation:
    agents = tuple(draws.choice("abcx") for _ in range(draws.randrange(RECENT)))
    return Situation(
        agents,
        len(agents),
        draws.randrange(3),
        draws.randrange(3),
        pieces=tuple(draws.randrange(1 << 32) for _ in range(draws.randrange(60))),
        task=tuple(draws.randrange(1 << 20) for _ in range(draws.randrange(20))),
        words=tuple(draws.randrange(1 << 20) for _ in range(draws.randrange(50))),
        finished=draws.random() < 0.5,
        hidden=np.array([draws.gauss(0.0, 3.0) for _ in range(draws.choice((0, 4)))], "<f2").tobytes(),
    )


@pytest.mark.parametrize("hidden", [b"odd", np.array([1.0, np.nan], "<f2").tobytes(), np.array([np.inf], "<f2").tobytes()])
def test_a_hidden_state_that_is_no_state_counts_as_unknown(hidden: bytes) -> None:
    assert features(Situation(("a",), hidden=hidden)).hidden == b""
