"""What each part of our policy gives: `pbkv` without it, to be named by path in `--policies`."""

from collections.abc import Sequence

import numpy as np

from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.access_log import StepLog
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.reuse.model.contexts import Sums
from pbkv_cluster.reuse.model.features import Ints
from pbkv_cluster.reuse.model.hazard import BIN_STARTS, BINS, Floats, HazardModel, Table
from pbkv_cluster.reuse.model.next_event import Event, NextEventModel
from pbkv_cluster.reuse.rank.timing import HORIZONS, Timing
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment

_FIXED_CYCLE_S = 15.0
_SOONER = np.diff(HORIZONS, prepend=0.0) / 2


class NoNewcomers(Pbkv):
    """Workflows that are still to start count for nothing."""

    def _newcomers(self, entries: Sequence[PrefixStat | None], now: float) -> list[tuple[float, float]]:
        return [(0.0, 0.0)] * len(entries)


class NoOthers(Pbkv):
    """Active workflows that have not used a block yet count for nothing."""

    def _others(self, node: Node, entry: PrefixStat, now: float, unused: Floats) -> None:
        pass


class NoForecasts(Pbkv):
    """The next agent by the workflow's own record alone."""

    heeds_forecasts = False


class NoQueue(Pbkv):
    """A queued prompt says nothing."""

    def step_queued(self, owner: Owner, segments: Sequence[Segment], now: float) -> None:
        pass


class NoNextEvent(NoForecasts):
    """Nothing is expected next. The hazards have been learnt with it, though: those contexts are mute, and the others no better
    than they were beside them."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._outlook.model.events = _Mute()


class NoHazards(Pbkv):
    """Each hazard is one half, whatever was learnt: what is left is who holds a block, and when they come."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._outlook.model.hazard = _OneHalf()


class NoTime(Pbkv):
    """Steps come in one fixed rhythm, whatever was measured."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._outlook.timing = _FixedCycle()


class PlainSum(Pbkv):
    """Each use counts by how soon it comes, in place of the best time to give up waiting."""

    def _worth(self, unused: Floats) -> Floats:
        falls = -np.diff(unused, prepend=1.0)
        worth: Floats = (falls / (HORIZONS - _SOONER + self._overhead)).sum(axis=-1) / self._outlook.timing.unit
        return worth

    def _newcomers_alone(self, entry: PrefixStat, now: float) -> float:
        ((uses, delay),) = self._newcomers((entry,), now)
        return float(self._worth(np.exp(-uses * np.maximum(HORIZONS - delay, 0.0))))


class _Mute(NextEventModel):
    def distribution(self, steps: Sequence[StepLog]) -> dict[Event, float]:
        return {}


class _OneHalf(HazardModel):
    def steady_log_odds(self, sums: Sums) -> Table:
        return np.zeros((len(sums), BINS), dtype=np.float32)

    def open_log_odds(self, sums: Sums, foretold: Ints) -> Table:
        return np.zeros((len(sums), BINS), dtype=np.float32)


class _FixedCycle(Timing):
    def _set_cycle(self) -> None:
        self.cycle, self.unit = _FIXED_CYCLE_S, 1.0

    def arrival(self, agent: str, running: bool, elapsed: float) -> Floats:
        return (BIN_STARTS[:, None] * _FIXED_CYCLE_S <= HORIZONS).astype(np.float64)
