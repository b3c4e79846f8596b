"""How much the present agent tells of the next one: R = 1 - H(A'|A) / H(A'), in [0, 1] (CacheSage, arXiv 2605.27744)."""

import math
from collections.abc import Mapping
from typing import Any

_MEASURED_EVERY = 32  # transitions
_MOST = 1024  # of a state; beyond, its counts are halved
_MOST_STATES = 2048
_PRIOR = 0.1  # of each label as a successor: keeps R low while little is known


class Predictability:
    """Of one workload, from counts of what followed what; the end of a workflow is a successor too."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, float]] = {}
        self._new = 0
        self.value = 0.0

    def seen(self, label: str, successor: str) -> None:
        """Counts one transition."""
        row = self._counts.setdefault(label, {})
        row[successor] = row.get(successor, 0.0) + 1.0
        if sum(row.values()) > _MOST:
            self._counts[label] = {name: count / 2 for name, count in row.items() if count > 1.0}
        if len(self._counts) > _MOST_STATES:
            del self._counts[next(iter(self._counts))]
        self._new += 1
        if self._new >= min(_MEASURED_EVERY, len(self._counts) * 4):
            self._new = 0
            self.value = self._measure()

    def _measure(self) -> float:
        every: dict[str, float] = {}
        conditional = total = 0.0
        labels = len(set(self._counts).union(*self._counts.values()))
        for row in self._counts.values():
            left = sum(row.values())
            conditional += left * _entropy(row, labels)
            total += left
            for name, count in row.items():
                every[name] = every.get(name, 0.0) + count
        marginal = _entropy(every, labels)
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
    """Of a distribution over `labels` labels, in nats; those without a count have the prior's alone."""
    total = sum(counts.values()) + _PRIOR * labels
    seen = sum(-share * math.log(share) for share in ((count + _PRIOR) / total for count in counts.values()))
    rest = _PRIOR / total
    return seen - (labels - len(counts)) * rest * math.log(rest)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(count, float) and 0 < count <= _MOST + 1 for count in row.values())
