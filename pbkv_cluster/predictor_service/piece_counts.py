"""Which pieces of prompts several workflows of a workload share: a template's, not a task's."""

from collections.abc import Sequence
from typing import Any

SHARED_BY = 3  # workflows, from which on a piece is known

_MOST = 1 << 15  # pieces of each kind; beyond, such leave as were not seen for long


class PieceCounts:
    """Counts workflows by piece."""

    def __init__(self) -> None:
        self._known: dict[int, None] = {}
        self._seen: set[int] = set()  # of these, since some left
        self._rare: dict[int, tuple[int, str]] = {}  # workflows, and the latest of them; that which came longest ago first

    def known(self, pieces: Sequence[int], workflow: str) -> tuple[int, ...]:
        """The pieces of a workflow's prompt that enough workflows have had, this one included."""
        for piece in [piece for piece in dict.fromkeys(pieces) if piece not in self._known]:
            count, latest = self._rare.get(piece, (0, ""))
            if count and latest == workflow:
                continue
            self._rare.pop(piece, None)
            if count + 1 < SHARED_BY:
                self._rare[piece] = count + 1, workflow
            else:
                self._known[piece] = None
        while len(self._rare) > _MOST:
            del self._rare[next(iter(self._rare))]
        found = tuple([piece for piece in pieces if piece in self._known])
        self._seen.update(found)
        if len(self._known) > _MOST:
            self._leave()
        return found

    def _leave(self) -> None:
        """Half of the known pieces leave: those unseen since this happened last, then those known longest."""
        newest = list(self._known)
        newest.sort(key=self._seen.__contains__)  # stable
        self._known = dict.fromkeys(newest[-_MOST // 2 :])
        self._seen.clear()

    def dump(self) -> dict[str, Any]:
        """The known pieces."""
        return {"known": list(self._known)}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises:
        ValueError: the state is damaged.
        """
        known = state.get("known")
        if not isinstance(known, list) or not all(type(piece) is int for piece in known):
            raise ValueError("known pieces must be a list of numbers")
        self._known, self._rare = dict.fromkeys(known[-_MOST:]), {}
