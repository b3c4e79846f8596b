"""From rows of history to what is plotted, and to the figures of a whole window of time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pbkv_cluster.core.metrics.histogram import SECONDS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.dashboard.columns import AT, BOUNDS, CAPTURED, DELIVERED, PHASES
from pbkv_cluster.dashboard.history import Rows

_Floats = NDArray[np.float64]

_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def charts(rows: Rows) -> dict[str, list[float | None]]:
    """A point for each row but the first. Rates are shares of the prompt tokens since the row before; None: there were none.

    Times are in seconds, sizes in bytes, latencies percentiles in seconds of the steps that ended since the row before.
    """
    if len(rows) < 2:
        return {}
    grown = np.maximum(np.diff(rows, axis=0), 0)
    now, prompt = rows[1:], grown[:, AT["prompt"]]
    elapsed = np.diff(rows[:, 0])
    found = {
        "time": now[:, 0],
        "available": _ratio(grown[:, AT["available"]], prompt),
        "captured": _ratio(grown[:, CAPTURED].sum(axis=1), prompt),
        "delivered": _ratio(grown[:, DELIVERED].sum(axis=1), prompt),
        "lru": _ratio(grown[:, AT["guard_lru"]], grown[:, AT["guard_prompt"]]),
        "accuracy": _ratio(grown[:, AT["correct"]], grown[:, AT["scored"]]),
        "confidence": _ratio(grown[:, AT["confidence"]], grown[:, AT["scored"]]),
        "loaded_per_s": _ratio(grown[:, AT["loaded_bytes"]], elapsed),
        "demoted_per_s": _ratio(grown[:, AT["demoted_bytes"]], elapsed),
        **{name: now[:, AT[name]] for name in ("running", "waiting")},
    }
    counts = grown[:, [AT[f"ttft_{bound}"] for bound in BOUNDS]]
    for name, share in _PERCENTILES.items():
        found[f"ttft_{name}"] = np.array([percentile(each, share) for each in counts])
    return {name: _plain(values) for name, values in found.items()}


def window(rows: Rows) -> dict[str, Any]:
    """Sums over all rows: tokens, seconds, counts. Percentiles in seconds; None: no step has ended."""
    if len(rows) < 2:
        return {}
    grown = np.maximum(rows[-1] - rows[0], 0)
    found: dict[str, Any] = {
        name: float(grown[AT[name]])
        for name in (
            *("steps", "prompt", "available", "computed", "generated", "guard_prompt", "guard_cache", "guard_lru"),
            *("saved_s", "scored", "correct", "confidence", "loaded_bytes", "demoted_bytes"),
        )
    }
    found["saved_over_lru_s"] = float(rows[-1, AT["saved_over_lru_s"]] - rows[0, AT["saved_over_lru_s"]])
    found["seconds"] = float(rows[-1, 0] - rows[0, 0])
    found["captured"] = {str(tier): float(grown[AT[f"captured_{tier}"]]) for tier in Tier}
    found["delivered"] = {str(tier): float(grown[AT[f"delivered_{tier}"]]) for tier in Tier}
    found["phases"] = {phase: float(grown[AT[f"phase_{phase}"]]) for phase in PHASES}
    for kind in ("ttft", "step"):
        counts = grown[[AT[f"{kind}_{bound}"] for bound in BOUNDS]]
        values = {name: percentile(counts, share) for name, share in _PERCENTILES.items()}
        found[kind] = {name: None if np.isnan(value) else value for name, value in values.items()}
    return found


def percentile(counts: _Floats, share: float) -> float:
    """Of a histogram, within its bucket by straight line; what is above the last bound counts as that. NaN: it is empty.

    Args:
        counts: durations up to each bound of `SECONDS`, and all.
        share: from 0 to 1.
    """
    total = counts[-1]
    if total <= 0:
        return float("nan")
    wanted = share * total
    bucket = int(np.searchsorted(counts, wanted))
    if bucket >= len(SECONDS):
        return SECONDS[-1]
    below, from_s = (counts[bucket - 1], SECONDS[bucket - 1]) if bucket else (0.0, 0.0)
    inside = counts[bucket] - below
    return float(from_s + (SECONDS[bucket] - from_s) * ((wanted - below) / inside if inside > 0 else 1.0))


def _ratio(part: _Floats, whole: _Floats) -> _Floats:
    quotients: _Floats = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return quotients


def _plain(values: _Floats) -> list[float | None]:
    """As JSON takes it."""
    return [None if value != value else round(value, 4) for value in values.tolist()]
