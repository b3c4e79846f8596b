"""Many forecasts in arrays: as they are made, wait and travel. One of them is made an object where it is asked for."""

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
    """A sequence of forecasts, N of them, of at most K steps each."""

    workflows: list[str]
    epochs: npt.NDArray[np.uint64]  # [N]
    made_at: npt.NDArray[np.float64]  # [N]
    predictability: npt.NDArray[np.float32]  # [N]
    behind: npt.NDArray[np.int32]  # [N]: number of the step behind which each looks ahead, or -1
    ended: npt.NDArray[np.bool_]  # [N]
    lengths: npt.NDArray[np.int32]  # [N]: steps of each, at most K
    survival: npt.NDArray[np.float32]  # [N, K]
    named: npt.NDArray[np.int32]  # [N, K]: agents that each step names; none behind a forecast's length
    agents: npt.NDArray[np.int32]  # all these agents, forecast by forecast and step by step, by their positions in `names`
    chances: npt.NDArray[np.float32]  # probability of each
    names: Sequence[str]  # all different

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
        names = [self.names[agent] for agent in self.agents.tolist()]
        chances = self.chances.tolist()
        ends = self.named.cumsum().tolist()
        named = [dict(zip(names[start:end], chances[start:end], strict=True)) for start, end in pairwise([0, *ends])]
        steps = list(map(StepForecast, named, self.survival.ravel().tolist()))
        horizon = self.survival.shape[1]
        columns = (self.epochs, self.made_at, self.lengths, self.predictability, self.behind, self.ended)
        each = zip(self.workflows, *(column.tolist() for column in columns), strict=True)
        for at, (workflow, epoch, made_at, length, predictability, behind, ended) in enumerate(each):
            mine = tuple(steps[at * horizon : at * horizon + length])
            yield Forecast(workflow, epoch, made_at, mine, predictability, behind, ended)

    def take(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Forecasts:
        """Those at the places given, in that order. They hold nothing of the others but the names of agents."""
        chosen = np.asarray(places, dtype=np.int64)
        sizes = self.named.sum(axis=1)
        starts, sizes = (sizes.cumsum() - sizes)[chosen], sizes[chosen]
        ends = sizes.cumsum()
        told = np.arange(ends[-1] if len(ends) else 0) + (starts - ends + sizes).repeat(sizes)
        return Forecasts(
            [self.workflows[at] for at in chosen.tolist()],
            self.epochs[chosen],
            self.made_at[chosen],
            self.predictability[chosen],
            self.behind[chosen],
            self.ended[chosen],
            self.lengths[chosen],
            self.survival[chosen],
            self.named[chosen],
            self.agents[told],
            self.chances[told],
            self.names,
        )

    def compact(self) -> Forecasts:
        """The same, with no names but those of agents that are named."""
        used = np.zeros(len(self.names), dtype=np.bool_)
        used[self.agents] = True
        if used.all():
            return self
        positions = used.cumsum(dtype=np.int32) - np.int32(1)
        names = [self.names[at] for at in np.flatnonzero(used).tolist()]
        return replace(self, agents=positions[self.agents], names=names)

    @classmethod
    def of(cls, forecasts: Iterable[Forecast]) -> Forecasts:
        """The same forecasts in arrays."""
        every = list(forecasts)
        horizon = max((len(each.steps) for each in every), default=0)
        survival = np.zeros((len(every), horizon), dtype=np.float32)
        named = np.zeros((len(every), horizon), dtype=np.int32)
        positions: dict[str, int] = {}
        agents, chances = list[int](), list[float]()
        for at, each in enumerate(every):
            for number, step in enumerate(each.steps):
                survival[at, number], named[at, number] = step.survival, len(step.agents)
                agents += [positions.setdefault(agent, len(positions)) for agent in step.agents]
                chances += step.agents.values()
        return cls(
            [each.workflow for each in every],
            np.array([each.epoch for each in every], dtype=np.uint64),
            np.array([each.made_at for each in every], dtype=np.float64),
            np.array([each.predictability for each in every], dtype=np.float32),
            np.array([each.step for each in every], dtype=np.int32),
            np.array([each.ended for each in every], dtype=np.bool_),
            np.array([len(each.steps) for each in every], dtype=np.int32),
            survival,
            named,
            np.array(agents, dtype=np.int32),
            np.array(chances, dtype=np.float32),
            list(positions),
        )

    @classmethod
    def joined(cls, parts: Iterable[Forecasts]) -> Forecasts:
        """The forecasts of several, one behind the other."""
        every = [part for part in parts if len(part)]
        if len(every) == 1:
            return every[0]
        if not every:
            return cls.of([])
        positions: dict[str, int] = {}
        agents = list[npt.NDArray[np.int32]]()
        for part in every:
            moved = np.array([positions.setdefault(name, len(positions)) for name in part.names], dtype=np.int32)
            agents.append(moved[part.agents])
        horizon = max(part.survival.shape[1] for part in every)

        def column(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in every])

        def table(name: str) -> Any:
            tables = [getattr(part, name) for part in every]
            if any(each.shape[1] < horizon for each in tables):  # to pad is slow
                tables = [np.pad(each, ((0, 0), (0, horizon - each.shape[1]))) for each in tables]
            return np.concatenate(tables)

        return cls(
            [workflow for part in every for workflow in part.workflows],
            column("epochs"),
            column("made_at"),
            column("predictability"),
            column("behind"),
            column("ended"),
            column("lengths"),
            table("survival"),
            table("named"),
            np.concatenate(agents),
            column("chances"),
            list(positions),
        )
