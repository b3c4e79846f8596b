"""Which pieces of prompts several workflows of a workload share: a template's, not a task's."""

from collections.abc import Sequence
from typing import Any

SHARED_BY = 3  # workflows, from which on a piece is known

_MOST = 1 << 15  # pieces of each kind, about; beyond, such leave as were not seen for long


class PieceCounts:
    """Counts workflows by piece."""

    def __init__(self) -> None:
        # Known ones in two generations: what is seen moves to the later one, and the former leaves once that is full.
        self._recent: dict[int, None] = {}
        self._former: dict[int, None] = {}
        self._rare: dict[int, tuple[int, str]] = {}  # workflows, and the latest of them; that which came longest ago first

    def known(self, pieces: Sequence[int], workflow: str) -> tuple[int, ...]:
        """The pieces of a workflow's prompt that enough workflows have had, this one included."""
        for piece in [piece for piece in dict.fromkeys(pieces) if piece not in self._recent]:
            if piece in self._former:
                del self._former[piece]
                self._recent[piece] = None
                continue
            count, latest = self._rare.get(piece, (0, ""))
            if count and latest == workflow:
                continue
            self._rare.pop(piece, None)
            if count + 1 < SHARED_BY:
                self._rare[piece] = count + 1, workflow
            else:
                self._recent[piece] = None
        while len(self._rare) > _MOST:
            del self._rare[next(iter(self._rare))]
        found = tuple([piece for piece in pieces if piece in self._recent])
        if len(self._recent) > _MOST // 2:
            self._former, self._recent = self._recent, {}
        return found

    def dump(self) -> dict[str, Any]:
        """The known pieces."""
        return {"known": [*self._former, *self._recent]}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises:
        ValueError: the state is damaged.
        """
        known = state.get("known")
        if not isinstance(known, list) or not all(type(piece) is int for piece in known):
            raise ValueError("known pieces must be a list of numbers")
        self._former, self._recent, self._rare = dict.fromkeys(known[-_MOST:]), {}, {}
