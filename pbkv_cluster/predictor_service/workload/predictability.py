"""How much a step's agent tells of the next one: R = 1 - H(A'|A) / H(A'), in [0, 1] (CacheSage, arXiv 2605.27744)."""

import math
from collections.abc import Mapping
from typing import Any

_MEASURE_EVERY = 32  # transitions
_MAX_COUNT = 1024  # transitions from one label; beyond, its counts are halved
_MAX_LABELS = 2048
_PRIOR = 0.1  # added to the count of each successor: keeps R low while little is known


class Predictability:
    """R of one workload, from counts of which label follows which; the end of a workflow counts as a successor."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, float]] = {}
        self._unmeasured = 0  # transitions since `value` was computed
        self.value = 0.0

    def add_transition(self, label: str, successor: str) -> None:
        """Counts one transition."""
        row = self._counts.setdefault(label, {})
        row[successor] = row.get(successor, 0.0) + 1.0
        if sum(row.values()) > _MAX_COUNT:
            self._counts[label] = {name: count / 2 for name, count in row.items() if count > 1.0}
        if len(self._counts) > _MAX_LABELS:
            del self._counts[next(iter(self._counts))]
        self._unmeasured += 1
        if self._unmeasured >= min(_MEASURE_EVERY, len(self._counts) * 4):
            self._unmeasured = 0
            self.value = self._measure()

    def _measure(self) -> float:
        totals: dict[str, float] = {}
        conditional = total = 0.0
        labels = len(set(self._counts).union(*self._counts.values()))
        for row in self._counts.values():
            count = sum(row.values())
            conditional += count * _entropy(row, labels)
            total += count
            for name, times in row.items():
                totals[name] = totals.get(name, 0.0) + times
        marginal = _entropy(totals, labels)
        return max(0.0, 1.0 - conditional / total / marginal) if marginal > 0.0 else 0.0

    def dump(self) -> dict[str, Any]:
        return {"counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises:
        ValueError: the state is damaged.
        """
        counts = state.get("counts")
        if not isinstance(counts, dict) or not all(_is_row(row) for row in counts.values()):
            raise ValueError("counts of transitions do not fit")
        self._counts = {label: dict(row) for label, row in counts.items()}
        self.value = self._measure() if self._counts else 0.0


def _entropy(counts: Mapping[str, float], labels: int) -> float:
    """Entropy of a distribution over `labels` labels, in nats. Labels without a count have the prior alone."""
    total = sum(counts.values()) + _PRIOR * labels
    counted = sum(-share * math.log(share) for share in ((count + _PRIOR) / total for count in counts.values()))
    share = _PRIOR / total  # of each label without a count
    return counted - (labels - len(counts)) * share * math.log(share)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(count, float) and 0 < count <= _MAX_COUNT + 1 for count in row.values())
