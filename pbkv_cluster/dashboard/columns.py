"""One row of history: what is kept of a moment, as numbers in a fixed order.

Counters are kept as sums since history began, over all members and all of their restarts, so that the difference of any two
rows is what happened between them, however many rows between have been dropped.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.histogram import SECONDS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.dashboard.scraping.metrics_text import Labels, Scrape, Scrapes

Row = NDArray[np.float64]

BOUNDS = (*map(repr, SECONDS), "+Inf")  # of the latency histograms
PHASES = ("queue", "load", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class _Series:
    """Where a column comes from."""

    name: str
    labels: tuple[Labels, ...] = ((),)  # of series that are added up

    def read(self, scrape: Scrape) -> float:
        known = scrape.series.get(self.name)
        return sum(known.get(labels, 0.0) for labels in self.labels) if known else 0.0


def _series(name: str, **labels: str) -> _Series:
    return _Series(name, (tuple(sorted(labels.items())),))


_BESIDE_GPU = [tier for tier in Tier if tier is not Tier.GPU]


def _copied(source: Iterable[Tier], target: Iterable[Tier]) -> _Series:
    return _Series(names.TRANSFER_BYTES.name, tuple((("source", each), ("target", to)) for each in source for to in target))


_COUNTERS: dict[str, _Series] = {
    "steps": _series(names.STEPS.name, outcome="finished"),
    "prompt": _series(names.PROMPT_TOKENS.name),
    "available": _series(names.AVAILABLE_TOKENS.name),
    **{f"captured_{tier}": _series(names.CAPTURED_TOKENS.name, tier=tier) for tier in Tier},
    **{f"delivered_{tier}": _series(names.DELIVERED_TOKENS.name, tier=tier) for tier in Tier},
    "computed": _series(names.COMPUTED_TOKENS.name),
    "generated": _series(names.GENERATED_TOKENS.name),
    "guard_prompt": _series(names.GUARD_PROMPT_TOKENS.name),
    "guard_cache": _series(names.GUARD_HIT_TOKENS.name, order="cache"),
    "guard_lru": _series(names.GUARD_HIT_TOKENS.name, order="lru"),
    "saved_over_lru_s": _series(names.GUARD_SAVED_SECONDS.name),  # a gauge, but one that sums up
    "scored": _series(names.FORECASTS_SCORED.name),
    "correct": _series(names.FORECASTS_CORRECT.name),
    "confidence": _series(names.CONFIDENCE.name),
    "loaded_bytes": _copied(_BESIDE_GPU, [Tier.GPU]),
    "demoted_bytes": _copied([Tier.GPU], _BESIDE_GPU),
    **{f"phase_{phase}": _series(names.PHASE_SECONDS.name, phase=phase) for phase in PHASES},
    **{f"ttft_{bound}": _series(f"{names.TTFT_SECONDS.name}_bucket", le=bound) for bound in BOUNDS},
    **{f"step_{bound}": _series(f"{names.STEP_SECONDS.name}_bucket", le=bound) for bound in BOUNDS},
}
_GAUGES: dict[str, _Series] = {
    "running": _series(names.RUNNING_STEPS.name),
    "waiting": _series(names.WAITING_STEPS.name),
}
_INCARNATION = _series("process_start_time_seconds")
_PREFILL_RATE = _series(names.PREFILL_RATE.name)

NAMES = ("time", *_COUNTERS, "saved_s", *_GAUGES)
"""What the numbers of a row are: `time` is in seconds since the epoch, `saved_s` the prefill that delivered tokens would have
taken at the speed measured then."""
AT = {name: index for index, name in enumerate(NAMES)}
DELIVERED = tuple(AT[f"delivered_{tier}"] for tier in Tier)
CAPTURED = tuple(AT[f"captured_{tier}"] for tier in Tier)
_FIRST_COUNTER = AT["steps"]
_SUMS = len(_COUNTERS) + 1  # with `saved_s`


class RowMaker:
    """Makes the rows of a cluster, in turn."""

    def __init__(self, last: Row | None = None) -> None:
        """`last`: a row of an earlier cluster, whose sums are continued."""
        self._sums = np.zeros(_SUMS) if last is None else last[_FIRST_COUNTER : _FIRST_COUNTER + _SUMS].copy()
        self._seen: dict[str, tuple[float, Row]] = {}  # by member: when its process started, its counters

    def start(self, time: float) -> Row:
        """The row before anything was counted."""
        return self._row(time, {})

    def make(self, time: float, scrapes: Scrapes) -> Row:
        """The row of a moment. A member that does not answer counts as unchanged.

        Args:
            time: seconds since the epoch.
            scrapes: of the members that have answered.
        """
        grown = np.zeros(len(_COUNTERS))
        for member, scrape in scrapes.items():
            started, values = _INCARNATION.read(scrape), np.array([series.read(scrape) for series in _COUNTERS.values()])
            before = self._seen.get(member)
            # A process that has started again counts from 0.
            grown += values - before[1] if before is not None and before[0] == started else values
            self._seen[member] = started, values
        self._sums[:-1] += grown
        rates = [rate for scrape in scrapes.values() if (rate := _PREFILL_RATE.read(scrape))]
        if rates:
            delivered = sum(grown[at - _FIRST_COUNTER] for at in DELIVERED)
            self._sums[-1] += delivered * len(rates) / sum(rates)
        return self._row(time, scrapes)

    def _row(self, time: float, scrapes: Scrapes) -> Row:
        gauges = [sum(series.read(scrape) for scrape in scrapes.values()) for series in _GAUGES.values()]
        return np.array([time, *self._sums, *gauges])
