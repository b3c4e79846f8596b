"""Many forecasts in arrays, the form in which they are made, queued and sent. Iterating makes an object of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast


@dataclass(frozen=True, slots=True, eq=False)
class Forecasts(Sequence[Forecast]):
    """N forecasts of at most K steps each."""

    workflows: list[str]
    epochs: npt.NDArray[np.uint64]  # [N]
    made_at: npt.NDArray[np.float64]  # [N]
    predictability: npt.NDArray[np.float32]  # [N]
    after_steps: npt.NDArray[np.int32]  # [N]: number of the step after which each looks ahead, or -1
    ended: npt.NDArray[np.bool_]  # [N]
    lengths: npt.NDArray[np.int32]  # [N]: steps that each forecasts, at most K
    survival: npt.NDArray[np.float32]  # [N, K]
    agent_counts: npt.NDArray[np.int32]  # [N, K]: agents named in each step; 0 beyond a forecast's length
    agent_positions: npt.NDArray[np.int32]  # of all these agents, in order, as indices of `agent_names`
    probabilities: npt.NDArray[np.float32]  # of all these agents, in order
    agent_names: Sequence[str]  # all different
    workloads: list[str]  # [N]: see `Forecast.workload`

    def __len__(self) -> int:
        return len(self.workflows)

    @overload
    def __getitem__(self, at: int) -> Forecast: ...

    @overload
    def __getitem__(self, at: slice) -> Forecasts: ...

    def __getitem__(self, at: int | slice) -> Forecast | Forecasts:
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        return next(iter(self.take(np.array([range(len(self))[at]]))))

    def __iter__(self) -> Iterator[Forecast]:
        agents = [self.agent_names[agent] for agent in self.agent_positions.tolist()]
        probabilities = self.probabilities.tolist()
        ends = self.agent_counts.cumsum().tolist()
        by_agent = [dict(zip(agents[start:end], probabilities[start:end], strict=True)) for start, end in pairwise([0, *ends])]
        steps = list(map(StepForecast, by_agent, self.survival.ravel().tolist()))
        horizon = self.survival.shape[1]
        columns = (self.epochs, self.made_at, self.lengths, self.predictability, self.after_steps, self.ended)
        rows = zip(self.workflows, *(column.tolist() for column in columns), self.workloads, strict=True)
        for at, (workflow, epoch, made_at, length, predictability, after_step, ended, workload) in enumerate(rows):
            mine = tuple(steps[at * horizon : at * horizon + length])
            yield Forecast(workflow, epoch, made_at, mine, predictability, after_step, ended, workload)

    def take(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> Forecasts:
        """The forecasts at these positions, in this order. `agent_names` stays whole; `compact` shortens it."""
        chosen = np.asarray(positions, dtype=np.int64)
        sizes = self.agent_counts.sum(axis=1)
        starts, sizes = (sizes.cumsum() - sizes)[chosen], sizes[chosen]
        ends = sizes.cumsum()
        kept = np.arange(ends[-1] if len(ends) else 0) + (starts - ends + sizes).repeat(sizes)
        return Forecasts(
            [self.workflows[at] for at in chosen.tolist()],
            self.epochs[chosen],
            self.made_at[chosen],
            self.predictability[chosen],
            self.after_steps[chosen],
            self.ended[chosen],
            self.lengths[chosen],
            self.survival[chosen],
            self.agent_counts[chosen],
            self.agent_positions[kept],
            self.probabilities[kept],
            self.agent_names,
            [self.workloads[at] for at in chosen.tolist()],
        )

    def compact(self) -> Forecasts:
        """The same forecasts, without names that no step refers to."""
        used = np.zeros(len(self.agent_names), dtype=np.bool_)
        used[self.agent_positions] = True
        if used.all():
            return self
        positions = used.cumsum(dtype=np.int32) - np.int32(1)
        agent_names = [self.agent_names[at] for at in np.flatnonzero(used).tolist()]
        return replace(self, agent_positions=positions[self.agent_positions], agent_names=agent_names)

    @classmethod
    def of(cls, forecasts: Iterable[Forecast]) -> Forecasts:
        """Puts forecasts into arrays."""
        every = list(forecasts)
        horizon = max((len(each.steps) for each in every), default=0)
        survival = np.zeros((len(every), horizon), dtype=np.float32)
        agent_counts = np.zeros((len(every), horizon), dtype=np.int32)
        positions: dict[str, int] = {}
        agents, probabilities = list[int](), list[float]()
        for at, each in enumerate(every):
            for number, step in enumerate(each.steps):
                survival[at, number], agent_counts[at, number] = step.survival, len(step.agents)
                agents += [positions.setdefault(agent, len(positions)) for agent in step.agents]
                probabilities += step.agents.values()
        return cls(
            [each.workflow for each in every],
            np.array([each.epoch for each in every], dtype=np.uint64),
            np.array([each.made_at for each in every], dtype=np.float64),
            np.array([each.predictability for each in every], dtype=np.float32),
            np.array([each.step for each in every], dtype=np.int32),
            np.array([each.ended for each in every], dtype=np.bool_),
            np.array([len(each.steps) for each in every], dtype=np.int32),
            survival,
            agent_counts,
            np.array(agents, dtype=np.int32),
            np.array(probabilities, dtype=np.float32),
            list(positions),
            [each.workload for each in every],
        )

    @classmethod
    def joined(cls, parts: Iterable[Forecasts]) -> Forecasts:
        """The forecasts of all parts, in order."""
        every = [part for part in parts if len(part)]
        if len(every) == 1:
            return every[0]
        if not every:
            return cls.of([])
        positions: dict[str, int] = {}
        agents = list[npt.NDArray[np.int32]]()
        for part in every:
            moved = np.array([positions.setdefault(name, len(positions)) for name in part.agent_names], dtype=np.int32)
            agents.append(moved[part.agent_positions])
        horizon = max(part.survival.shape[1] for part in every)

        def column(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in every])

        def table(name: str) -> Any:
            tables = [getattr(part, name) for part in every]
            if any(each.shape[1] < horizon for each in tables):  # padding is slow, and seldom needed
                tables = [np.pad(each, ((0, 0), (0, horizon - each.shape[1]))) for each in tables]
            return np.concatenate(tables)

        return cls(
            [workflow for part in every for workflow in part.workflows],
            column("epochs"),
            column("made_at"),
            column("predictability"),
            column("after_steps"),
            column("ended"),
            column("lengths"),
            table("survival"),
            table("agent_counts"),
            np.concatenate(agents),
            column("probabilities"),
            list(positions),
            [workload for part in every for workload in part.workloads],
        )
