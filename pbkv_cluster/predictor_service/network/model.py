"""The network of PBKV (arXiv 2605.06472): GraphSAGE, attention over the steps so far, the context's signal, and an MLP.

It gives the K distributions at once, not one from another. The paper leaves sizes and details open; those here are the best
that were measured.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pbkv_cluster.predictor_service.network.examples import COUNTS, GROUPS, POSITIONS, TOKENS

_AGENT_WIDTH = 32  # of an agent's own embedding
_NODE_WIDTH = 64  # of its embedding in the graph
_HEADS = 8
_HEAD_WIDTH = 16
_TOKEN_WIDTH = 32
_STATE_WIDTH = 64
_INNER_WIDTH = 128
_DROPOUT = 0.4
_GROUP_DROPOUT = 0.3
_MASKED = -1e9
_MAX_OUTER = 180_000  # weights of the last layer
MAX_HIDDEN = 1024  # size of a hidden state


def max_nodes(horizon: int) -> int:
    """Nodes of the largest network, which has fewer than 500,000 parameters."""
    return min(512, _MAX_OUTER // (horizon * (_INNER_WIDTH + 1)))


class Shape(NamedTuple):
    """What determines the sizes of a network."""

    nodes: int  # the agents and END, which stands for the start too
    horizon: int
    hidden: int  # size of a hidden state; 0: none is read
    positions: bool  # whether attention knows how long ago a step was


class Inputs(NamedTuple):
    """`examples.Batch` as tensors."""

    agents: Tensor
    numbers: Tensor
    tokens: Tensor
    offsets: Tensor
    scales: Tensor
    hidden: Tensor


class GraphSage(nn.Module):
    """One layer of GraphSAGE (Hamilton, Ying, Leskovec, NeurIPS 2017) with the mean aggregator, weighted by the edges.

    h'_v = ReLU(W₁ h_v + W₂ Σ_u a_vu h_u + b), a_vu = w_vu / Σ_u w_vu.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, out)
        self.neighbours = nn.Linear(width, out, bias=False)

    def forward(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """Args:
        nodes: [V, width].
        weights: [V, V] of the edges from each row's node, not negative.
        """
        shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return torch.relu(self.own(nodes) + self.neighbours(shares @ nodes))


class Tables(NamedTuple):
    """Attention's scores and values for each agent, computed once and not for each situation."""

    nodes: Tensor  # [V, width] embeddings
    scores: Tensor  # [V, V, heads] of a latest agent for an earlier one
    distances: Tensor  # [V, POSITIONS, heads] of a latest agent for a distance
    values: Tensor  # [heads, V + POSITIONS, head] of agents, then of distances


class PrefixAttention(nn.Module):
    """Multi-head attention of the latest agent over the steps so far, its own included.

    With positions, keys and values have an embedding of the distance (Shaw, Uszkoreit, Vaswani, NAACL 2018), and each head has
    a bias for it. Queries, keys and values depend on agents and distances alone, which makes `Tables` possible.
    """

    def __init__(self, width: int, positions: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, _HEADS * _HEAD_WIDTH)
        self.key = nn.Linear(width, _HEADS * _HEAD_WIDTH)
        self.value = nn.Linear(width, _HEADS * _HEAD_WIDTH)
        self.positions = positions
        if positions:
            # At first each head attends mostly to one distance, so that the order of steps is not averaged away.
            distance = torch.arange(POSITIONS).float()
            self.bias = nn.Parameter(-(distance[:, None] - torch.arange(_HEADS)).abs())
            self.key_distances = nn.Parameter(0.1 * torch.randn(POSITIONS, _HEADS, _HEAD_WIDTH))
            self.value_distances = nn.Parameter(0.1 * torch.randn(POSITIONS, _HEADS, _HEAD_WIDTH))

    def tables(self, nodes: Tensor) -> Tables:
        """Scores and values for embeddings of nodes [V, width]."""
        query, key, value = (each(nodes).unflatten(1, (_HEADS, _HEAD_WIDTH)) for each in (self.query, self.key, self.value))
        query = query / _HEAD_WIDTH**0.5
        scores = torch.einsum("vhd,uhd->vuh", query, key)
        if not self.positions:
            none = nodes.new_zeros(POSITIONS, _HEADS, _HEAD_WIDTH)
            return Tables(
                nodes, scores, nodes.new_zeros(len(nodes), POSITIONS, _HEADS), torch.cat([value, none]).transpose(0, 1)
            )
        distances = torch.einsum("vhd,phd->vph", query, self.key_distances) + self.bias
        return Tables(nodes, scores, distances, torch.cat([value, self.value_distances]).transpose(0, 1))

    def forward(self, tables: Tables, agents: Tensor) -> Tensor:
        """Args:
            tables: of the nodes.
            agents: [N, POSITIONS] nodes of the steps, the latest first; -1: no step.

        Returns:
            [N, heads * head].
        """
        size, count = len(agents), len(tables.nodes)
        present = agents >= 0
        known = agents.clamp(min=0)
        current = known[:, :1]
        scores = nn.functional.embedding(current * count + known, tables.scores.flatten(0, 1))
        scores = scores + nn.functional.embedding(current[:, 0], tables.distances.flatten(1)).view_as(scores)
        weights = torch.softmax(scores.masked_fill(~present[:, :, None], _MASKED), dim=1)  # [N, POSITIONS, heads]
        # Weights are summed by agent first: cheaper than adding up the values of all steps.
        by_agent = weights.new_zeros(size, count, _HEADS).scatter_add(1, known[:, :, None].expand_as(weights), weights)
        both = torch.cat([by_agent, weights], dim=1).permute(2, 0, 1)
        return torch.bmm(both, tables.values).transpose(0, 1).reshape(size, -1)


class Network(nn.Module):
    """Logits of the label of each of the next K steps."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.agents = nn.Parameter(0.3 * torch.randn(shape.nodes, _AGENT_WIDTH))
        self.graph1 = GraphSage(_AGENT_WIDTH, _NODE_WIDTH)
        self.graph2 = GraphSage(_NODE_WIDTH, _NODE_WIDTH)
        self.attention = PrefixAttention(_NODE_WIDTH, shape.positions)
        self.tokens = nn.EmbeddingBag(TOKENS, _TOKEN_WIDTH, mode="sum")
        nn.init.normal_(self.tokens.weight, std=0.3)
        self.state = nn.Linear(shape.hidden, _STATE_WIDTH) if shape.hidden else None
        width = (
            _NODE_WIDTH
            + _HEADS * _HEAD_WIDTH
            + (COUNTS if shape.positions else 0)
            + 1
            + GROUPS * _TOKEN_WIDTH
            + (_STATE_WIDTH if shape.hidden else 0)
        )
        self.inner = nn.Linear(width, _INNER_WIDTH)
        self.outer = nn.Linear(_INNER_WIDTH, shape.horizon * shape.nodes)
        self.dropout = nn.Dropout(_DROPOUT)

    def tables(self, edges: Tensor) -> Tables:
        """What depends on the agents and their transition graph alone; `edges` [V, V] are the weights of the graph."""
        return self.attention.tables(self.graph2(self.graph1(self.agents, edges), edges))

    def forward(self, inputs: Inputs, tables: Tables) -> Tensor:
        """Args:
            inputs: of N situations.
            tables: from `tables`.

        Returns:
            [N, K, V].
        """
        size = len(inputs.agents)
        # Training drops whole groups: otherwise the network memorises tasks, and forecasts worse with them than without.
        scales = nn.functional.dropout(inputs.scales, _GROUP_DROPOUT, self.training)
        bags = self.tokens(inputs.tokens, inputs.offsets) * scales[:, None]
        parts = [nn.functional.embedding(inputs.agents[:, 0], tables.nodes), self.attention(tables, inputs.agents)]
        parts += [bags.view(size, -1), inputs.numbers if self.shape.positions else inputs.numbers[:, COUNTS:]]
        if self.state is not None:
            parts.append(self.state(nn.functional.layer_norm(inputs.hidden.float(), inputs.hidden.shape[1:])))
        inner = self.dropout(torch.relu(self.inner(self.dropout(torch.cat(parts, dim=1)))))
        logits: Tensor = self.outer(inner)
        return logits.view(size, self.shape.horizon, self.shape.nodes)


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(each.numel() for each in network.parameters())
