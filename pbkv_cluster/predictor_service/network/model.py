"""The network of PBKV (arXiv 2605.06472): GraphSAGE, attention over the steps so far, the context's signal, and an MLP.

All K distributions come out at once, not one from the other. The paper leaves sizes and details open; those here were measured.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pbkv_cluster.predictor_service.network.examples import COUNTS, GROUPS, POSITIONS, TOKENS

_AGENT = 32  # width of what is learnt of an agent by itself
_NODE = 64  # and of its embedding in the graph
_HEADS = 8
_HEAD = 16
_TOKEN = 32
_STATE = 64
_WIDE = 128
_DROPOUT = 0.4
_BLANK = 0.3
_TINY = -1e9
_MOST_OUT = 180_000  # numbers of the last layer
MOST_HIDDEN = 1024  # numbers of a hidden state that is read


def most_nodes(horizon: int) -> int:
    """Nodes of the largest network: it stays below 500,000 numbers."""
    return min(512, _MOST_OUT // (horizon * (_WIDE + 1)))


class Shape(NamedTuple):
    """What the sizes of a network follow from."""

    nodes: int  # END, which is the beginning as well, and the agents
    horizon: int
    hidden: int  # numbers of a hidden state
    positions: bool  # attention knows how long ago a step was


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
    """What attention comes to for each agent, so that nothing of it is computed again for each situation."""

    nodes: Tensor  # [V, width] embeddings
    scores: Tensor  # [V, V, heads] of a current agent for a key
    distances: Tensor  # [V, POSITIONS, heads] of a current agent for a distance
    values: Tensor  # [heads, V + POSITIONS, head] of agents, then of distances


class PrefixAttention(nn.Module):
    """Multi-head attention of the current agent over the steps so far, itself included.

    With positions, keys and values have an embedding of the distance (Shaw, Uszkoreit, Vaswani, NAACL 2018), and each head has
    a bias for it. Queries, keys and values depend on agents and distances alone, so there are tables of them: see `Tables`.
    """

    def __init__(self, width: int, positions: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, _HEADS * _HEAD)
        self.key = nn.Linear(width, _HEADS * _HEAD)
        self.value = nn.Linear(width, _HEADS * _HEAD)
        self.positions = positions
        if positions:
            # Each head starts out looking mostly at one distance, so that the order is not lost in an average.
            distance = torch.arange(POSITIONS).float()
            self.bias = nn.Parameter(-(distance[:, None] - torch.arange(_HEADS)).abs())
            self.key_distances = nn.Parameter(0.1 * torch.randn(POSITIONS, _HEADS, _HEAD))
            self.value_distances = nn.Parameter(0.1 * torch.randn(POSITIONS, _HEADS, _HEAD))

    def tables(self, nodes: Tensor) -> Tables:
        """Args:
        nodes: embeddings [V, width].
        """
        query, key, value = (each(nodes).unflatten(1, (_HEADS, _HEAD)) for each in (self.query, self.key, self.value))
        query = query / _HEAD**0.5
        scores = torch.einsum("vhd,uhd->vuh", query, key)
        if not self.positions:
            none = nodes.new_zeros(POSITIONS, _HEADS, _HEAD)
            return Tables(
                nodes, scores, nodes.new_zeros(len(nodes), POSITIONS, _HEADS), torch.cat([value, none]).transpose(0, 1)
            )
        distances = torch.einsum("vhd,phd->vph", query, self.key_distances) + self.bias
        return Tables(nodes, scores, distances, torch.cat([value, self.value_distances]).transpose(0, 1))

    def forward(self, tables: Tables, agents: Tensor) -> Tensor:
        """Args:
            tables: of the nodes.
            agents: [N, POSITIONS] nodes of the steps, the latest first; -1: nothing there.

        Returns:
            [N, heads * head].
        """
        size, count = len(agents), len(tables.nodes)
        present = agents >= 0
        known = agents.clamp(min=0)
        current = known[:, :1]
        scores = nn.functional.embedding(current * count + known, tables.scores.flatten(0, 1))
        scores = scores + nn.functional.embedding(current[:, 0], tables.distances.flatten(1)).view_as(scores)
        weights = torch.softmax(scores.masked_fill(~present[:, :, None], _TINY), dim=1)  # [N, POSITIONS, heads]
        # The weights of an agent's steps together: there are fewer agents than numbers in the values of all steps.
        by_agent = weights.new_zeros(size, count, _HEADS).scatter_add(1, known[:, :, None].expand_as(weights), weights)
        both = torch.cat([by_agent, weights], dim=1).permute(2, 0, 1)
        return torch.bmm(both, tables.values).transpose(0, 1).reshape(size, -1)


class Network(nn.Module):
    """Logits of what comes at each of the K next steps."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.agents = nn.Parameter(0.3 * torch.randn(shape.nodes, _AGENT))
        self.graph1 = GraphSage(_AGENT, _NODE)
        self.graph2 = GraphSage(_NODE, _NODE)
        self.attention = PrefixAttention(_NODE, shape.positions)
        self.tokens = nn.EmbeddingBag(TOKENS, _TOKEN, mode="sum")
        nn.init.normal_(self.tokens.weight, std=0.3)
        self.state = nn.Linear(shape.hidden, _STATE) if shape.hidden else None
        width = (
            _NODE + _HEADS * _HEAD + (COUNTS if shape.positions else 0) + 1 + GROUPS * _TOKEN + (_STATE if shape.hidden else 0)
        )
        self.inner = nn.Linear(width, _WIDE)
        self.outer = nn.Linear(_WIDE, shape.horizon * shape.nodes)
        self.dropout = nn.Dropout(_DROPOUT)

    def tables(self, edges: Tensor) -> Tables:
        """What follows from the agents and their transition graph alone; `edges` [V, V] are its weights."""
        return self.attention.tables(self.graph2(self.graph1(self.agents, edges), edges))

    def forward(self, inputs: Inputs, tables: Tables) -> Tensor:
        """Args:
            inputs: of N situations.
            tables: from `tables`.

        Returns:
            [N, K, V].
        """
        size = len(inputs.agents)
        # Whole groups are left out while it learns: else it learns tasks by heart, and forecasts worse with them than without.
        scales = nn.functional.dropout(inputs.scales, _BLANK, self.training)
        bags = self.tokens(inputs.tokens, inputs.offsets) * scales[:, None]
        parts = [nn.functional.embedding(inputs.agents[:, 0], tables.nodes), self.attention(tables, inputs.agents)]
        parts += [bags.view(size, -1), inputs.numbers if self.shape.positions else inputs.numbers[:, COUNTS:]]
        if self.state is not None:
            parts.append(self.state(nn.functional.layer_norm(inputs.hidden.float(), inputs.hidden.shape[1:])))
        inner = self.dropout(torch.relu(self.inner(self.dropout(torch.cat(parts, dim=1)))))
        logits: Tensor = self.outer(inner)
        return logits.view(size, self.shape.horizon, self.shape.nodes)


def parameters(network: nn.Module) -> int:
    """How many numbers are learnt."""
    return sum(each.numel() for each in network.parameters())
