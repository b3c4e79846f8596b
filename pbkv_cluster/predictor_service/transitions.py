"""Counts of which agent follows which, and the Markov chain that they make."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.forecast import StepForecast

BOUNDARY = ""  # as a source: the workflow starts; as a target: it ends
NAMED_AGENTS = 32  # a step names at most these many of its likeliest agents
ROW_LIMIT = 1024  # a state left this often has its counts halved: what happened lately weighs more

_Floats = npt.NDArray[np.float64]


class TransitionTable:
    """First-order transitions between agents, with P_ij = (C_ij + ε) / Σ_k (C_ik + ε) over the agents seen and the end.

    The formula is CacheSage's (arXiv 2605.27744). The counts are dense: a chain step is one matrix product, and tables stay
    small. Start and end share index 0, for nothing leads to the start and nothing follows the end.
    """

    def __init__(self, smoothing: float, max_agents: int) -> None:
        """Args:
        smoothing: the pseudo-count ε, above 0.
        max_agents: agents kept; over it, a quarter leaves, longest unseen first.
        """
        self._smoothing = smoothing
        self._max_agents = max_agents
        self._index = {BOUNDARY: 0}
        self._names = [BOUNDARY]
        self._ticks = 0
        self._seen_at = [0]
        self._counts: _Floats = np.zeros((8, 8))
        self._totals: _Floats = np.zeros(8)  # of each row
        self._entropies: _Floats = np.zeros(8)  # of each row: Σ_j f(C_ij + ε) - f(ε), with f(x) = x ln x
        self._predictability: float | None = None

    def __len__(self) -> int:
        """Agents kept."""
        return len(self._names) - 1

    def see(self, agent: str) -> bool:
        """Makes an agent a possible successor. Returns whether it is new."""
        self._ticks += 1
        at = self._index.get(agent)
        if at is not None:
            self._seen_at[at] = self._ticks
            return False
        if len(self) >= self._max_agents:
            self._keep_recent(self._max_agents - max(1, self._max_agents // 4))
        self._index[agent] = len(self._names)
        self._names.append(agent)
        self._seen_at.append(self._ticks)
        if len(self._names) > len(self._totals):
            self._resize(2 * len(self._totals))
        self._predictability = None
        return True

    def record(self, source: str, target: str) -> None:
        """Counts one transition. A source that has left the table is not counted; a target is seen already."""
        i, j = self._index.get(source), self._index[target]
        if i is None:
            return
        before = float(self._counts[i, j]) + self._smoothing
        self._counts[i, j] += 1.0
        self._totals[i] += 1.0
        self._entropies[i] += _x_log_x(before + 1.0) - _x_log_x(before)
        if self._totals[i] >= ROW_LIMIT:
            self._counts[i] *= 0.5
            self._totals[i] *= 0.5
            self._refresh(i)
        self._predictability = None

    def left(self, source: str) -> float:
        """How often a state was seen to be left, older times halved."""
        i = self._index.get(source)
        return 0.0 if i is None else float(self._totals[i])

    def chain(self, sources: Sequence[str], horizon: int) -> list[tuple[StepForecast, ...]]:
        """The next `horizon` steps from each of `sources`; unknown sources leave to everything alike.

        The end absorbs: survival^(k) is the mass that has not reached it after k transitions, and each step's distribution is
        the rest of the mass over that survival. A table without agents knows nothing: survival 1, no agent named.
        """
        if not len(self):
            return [unknown(horizon)] * len(sources)
        n = len(self._names)
        counts, weight = self._counts[:n, :n], 1.0 / (self._totals[:n] + self._smoothing * n)
        rows = np.array([self._index.get(source, -1) for source in sources])
        mass = (counts[rows] + self._smoothing) * weight[rows, None]
        mass[rows < 0] = 1.0 / n
        steps = []
        for k in range(horizon):
            if k:
                # Smoothing adds one constant to every class of a row, so the product needs the bare counts only.
                scaled = mass * weight
                mass = scaled @ counts + self._smoothing * scaled.sum(axis=1, keepdims=True)
            mass[:, 0] = 0.0
            survival = np.clip(mass.sum(axis=1), np.finfo(np.float64).tiny, 1.0)
            steps.append(self._named(mass / survival[:, None], survival))
        return list(zip(*steps, strict=True))

    def predictability(self) -> float:
        """R = 1 - H(A'|A) / H(A') in [0, 1] (CacheSage): how much knowing a state tells of what comes next, the end included.

        States weigh as often as they were left. The smoothed rows keep R low while there is little to learn from.
        """
        if self._predictability is None:
            self._predictability = self._measure()
        return self._predictability

    def _measure(self) -> float:
        n = len(self._names)
        totals = self._totals[:n]
        if n == 1 or not totals.any():
            return 0.0
        sums = totals + self._smoothing * n
        share = totals / totals.sum()
        conditional = share @ (np.log(sums) - (self._entropies[:n] + n * _x_log_x(self._smoothing)) / sums)
        scaled = share / sums
        marginal = scaled @ self._counts[:n, :n] + self._smoothing * scaled.sum()
        return min(1.0, max(0.0, 1.0 - float(conditional / -(marginal @ np.log(marginal)))))

    def _named(self, rows: _Floats, survival: _Floats) -> list[StepForecast]:
        alive = survival.tolist()
        if len(self) <= NAMED_AGENTS:
            names = self._names[1:]
            return [
                StepForecast(dict(zip(names, row, strict=True)), s) for row, s in zip(rows[:, 1:].tolist(), alive, strict=True)
            ]
        best = np.argpartition(-rows, NAMED_AGENTS, axis=1)[:, :NAMED_AGENTS]
        likely = np.take_along_axis(rows, best, axis=1).tolist()
        return [
            StepForecast(dict(zip(map(self._names.__getitem__, columns), row, strict=True)), s)
            for columns, row, s in zip(best.tolist(), likely, alive, strict=True)
        ]

    def _refresh(self, row: int) -> None:
        counts = self._counts[row, : len(self._names)]
        values = counts[counts > 0] + self._smoothing
        self._entropies[row] = values @ np.log(values) - len(values) * _x_log_x(self._smoothing)

    def _resize(self, size: int) -> None:
        n = min(len(self._names), len(self._totals))
        counts, totals, entropies = np.zeros((size, size)), np.zeros(size), np.zeros(size)
        counts[:n, :n], totals[:n], entropies[:n] = self._counts[:n, :n], self._totals[:n], self._entropies[:n]
        self._counts, self._totals, self._entropies = counts, totals, entropies

    def _keep_recent(self, agents: int) -> None:
        by_age = sorted(range(1, len(self._names)), key=self._seen_at.__getitem__)
        kept = [0, *sorted(by_age[len(by_age) - agents :])]
        size = len(kept)
        self._counts[:size, :size] = self._counts[np.ix_(kept, kept)]
        self._counts[size:], self._counts[:, size:] = 0.0, 0.0
        self._names = [self._names[at] for at in kept]
        self._seen_at = [self._seen_at[at] for at in kept]
        self._index = {name: at for at, name in enumerate(self._names)}
        self._derive()

    def _derive(self) -> None:
        self._totals, self._entropies = self._counts.sum(axis=1), np.zeros(len(self._counts))
        for row in range(len(self._names)):
            self._refresh(row)
        self._predictability = None

    def to_state(self) -> dict[str, Any]:
        """JSON-ready contents: the agents, longest unseen first, and the counts as [source, target, count], 0 the boundary."""
        order = [0, *sorted(range(1, len(self._names)), key=self._seen_at.__getitem__)]
        counts = self._counts[np.ix_(order, order)]
        triples = [[int(i), int(j), float(counts[i, j])] for i, j in np.argwhere(counts)]
        return {"agents": [self._names[at] for at in order[1:]], "transitions": triples}

    @classmethod
    def from_state(cls, state: Any, smoothing: float, max_agents: int) -> "TransitionTable":
        """A table with the contents of `state`, less its longest unseen agents where it holds more than `max_agents`.

        Raises:
            ValueError: `state` is not what `to_state` gives; the message says where.
        """
        agents, transitions = _checked(state)
        table = cls(smoothing, max(max_agents, len(agents)))
        for agent in agents:
            table.see(agent)
        for source, target, count in transitions:
            table._counts[source, target] = count
        table._derive()
        table._max_agents = max_agents
        if len(agents) > max_agents:
            table._keep_recent(max_agents)
        return table


def unknown(horizon: int) -> tuple[StepForecast, ...]:
    """The forecast where nothing is known: it goes on, with anyone."""
    return (StepForecast({}, 1.0),) * horizon


def _x_log_x(x: float) -> float:
    return x * math.log(x)


def _checked(state: Any) -> tuple[list[str], list[tuple[int, int, float]]]:
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("agents"), list)
        or not isinstance(state.get("transitions"), list)
    ):
        raise ValueError("a table must hold lists called agents and transitions")
    agents = state["agents"]
    if not all(isinstance(agent, str) and agent for agent in agents) or len(set(agents)) != len(agents):
        raise ValueError("agents must be distinct names, none empty")
    transitions = []
    for entry in state["transitions"]:
        if not isinstance(entry, list) or len(entry) != 3:
            raise ValueError(f"{entry!r} is not a transition")
        source, target, count = entry
        if not all(type(at) is int and 0 <= at <= len(agents) for at in (source, target)):
            raise ValueError(f"the transition {entry!r} is between agents that the table does not name")
        if not isinstance(count, int | float) or not 0.0 < count <= ROW_LIMIT:
            raise ValueError(f"the transition {entry!r} has an impossible count")
        transitions.append((source, target, float(count)))
    return agents, transitions
