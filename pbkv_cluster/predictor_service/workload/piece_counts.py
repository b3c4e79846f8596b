"""Which pieces of prompts several workflows of a workload share, because they belong to a template and not to a task."""

from collections.abc import Sequence
from typing import Any

SHARED_BY = 3  # workflows, from which on a piece is known
MAX_PIECES = 1 << 15  # of each kind, about; beyond, those not seen for long leave


class PieceCounts:
    """Counts workflows by piece."""

    def __init__(self) -> None:
        # Known pieces are in two generations: a piece that is seen moves to the recent one; once that is full, it becomes the
        # old one, and what was still in the old one leaves.
        self._recent: dict[int, None] = {}
        self._old: dict[int, None] = {}
        self._rare: dict[int, tuple[int, str]] = {}  # number of workflows and the latest of them; oldest first

    @property
    def rare(self) -> int:
        """Pieces that are counted but not known yet."""
        return len(self._rare)

    def known(self, pieces: Sequence[int], workflow: str) -> tuple[int, ...]:
        """Counts the pieces of a workflow's prompt. Returns those that enough workflows have had, this one included."""
        for piece in [piece for piece in dict.fromkeys(pieces) if piece not in self._recent]:
            if piece in self._old:
                del self._old[piece]
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
        while len(self._rare) > MAX_PIECES:
            del self._rare[next(iter(self._rare))]
        found = tuple([piece for piece in pieces if piece in self._recent])
        if len(self._recent) > MAX_PIECES // 2:
            self._old, self._recent = self._recent, {}
        return found

    def dump(self) -> dict[str, Any]:
        """The known pieces."""
        return {"known": [*self._old, *self._recent]}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises:
        ValueError: the state is damaged.
        """
        known = state.get("known")
        if not isinstance(known, list) or not all(type(piece) is int for piece in known):
            raise ValueError("known pieces must be a list of numbers")
        self._old, self._recent, self._rare = dict.fromkeys(known[-MAX_PIECES:]), {}, {}
