"""What each part of policy `pbkv` contributes: the policy without it, to be named by path in `--policies`."""

from collections.abc import Callable, Sequence
from weakref import WeakSet

import numpy as np

from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.reuse.model.access_models import AccessModels
from pbkv_cluster.reuse.model.contexts import Sums
from pbkv_cluster.reuse.model.hazard import BIN_STARTS, BINS, Floats, HazardModel, Table
from pbkv_cluster.reuse.model.next_event import Event, NextEventModel
from pbkv_cluster.reuse.rank.timing import HORIZONS, Phase, Timing
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment

_FIXED_CYCLE_S = 15.0
_SOONER = np.diff(HORIZONS, prepend=0.0) / 2


class NoNewcomers(Pbkv):
    """Workflows that have not started yet count for nothing."""

    def first_uses(self, stats: Sequence[PrefixStat | None], now: float) -> list[tuple[float, float]]:
        return [(0.0, 0.0)] * len(stats)


class NoOthers(Pbkv):
    """Active workflows that have not used a block yet count for nothing."""

    def _multiply_others(self, node: Node, stat: PrefixStat, now: float, unused: Floats) -> None:
        pass


class NoForecasts(Pbkv):
    """The next agent is predicted from the workflow's own record alone."""

    uses_forecasts = False


class NoQueue(Pbkv):
    """The prompt of a queued step is ignored."""

    def step_queued(self, owner: Owner, number: int, segments: Sequence[Segment], now: float) -> None:
        pass


class NoNextEvent(NoForecasts):
    """The next event is unknown. The hazards were learnt with it, though: contexts that contain it say nothing here, and the
    others are no better than they were together with them."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.outlook.models = _Altered(lambda model: setattr(model, "events", _Mute()))


class NoHazards(Pbkv):
    """Each hazard is one half, whatever was learnt: what is left is who has used a block, and when their next steps come."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.outlook.models = _Altered(lambda model: setattr(model, "hazard", _OneHalf()))


class NoTime(Pbkv):
    """Steps come at fixed intervals, whatever was measured."""

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.outlook.timing = _FixedCycle()


class PlainSum(Pbkv):
    """Each use counts by how soon it comes, instead of the best time to give up waiting."""

    def _density(self, unused: Floats) -> Floats:
        falls = -np.diff(unused, prepend=1.0)
        density: Floats = (falls / (HORIZONS - _SOONER + self._overhead)).sum(axis=-1) / self.outlook.timing.unit
        return density

    def value_to_new_workflows(self, stat: PrefixStat, now: float) -> float:
        ((uses, delay),) = self.first_uses((stat,), now)
        return float(self._density(np.exp(-uses * np.maximum(HORIZONS - delay, 0.0))))


class _Altered(AccessModels):
    """Models of which a part is replaced before they are asked."""

    def __init__(self, alter: Callable[[AccessModel], None]) -> None:
        super().__init__()
        self._alter = alter
        self._altered = WeakSet[AccessModel]()

    def of(self, workload: str) -> AccessModel:
        model = super().of(workload)
        if model not in self._altered:
            self._altered.add(model)
            self._alter(model)
        return model


class _Mute(NextEventModel):
    def distribution(self, steps: Sequence[StepLog]) -> dict[Event, float]:
        return {}


class _OneHalf(HazardModel):
    def log_odds(self, sums: Sums) -> tuple[Table, Table]:
        return self.event_log_odds(sums), self.event_log_odds(sums)

    def event_log_odds(self, sums: Sums) -> Table:
        return np.zeros((len(sums), BINS), dtype=np.float32)


class _FixedCycle(Timing):
    def _set_cycle(self) -> None:
        self.cycle, self.unit = _FIXED_CYCLE_S, 1.0

    def arrival(self, phases: Sequence[Phase]) -> Floats:
        return np.repeat((BIN_STARTS[:, None] * _FIXED_CYCLE_S <= HORIZONS).astype(np.float64)[None], len(phases), axis=0)
