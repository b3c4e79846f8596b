"""Which pieces of prompts several workflows of a workload share: a template's, not a task's."""

from collections.abc import Sequence
from typing import Any

SHARED_BY = 3  # workflows, from which on a piece is known

_MOST = 1 << 15  # pieces of each kind; beyond, those that were longest unseen leave


class PieceCounts:
    """Counts workflows by piece."""

    def __init__(self) -> None:
        self._known: dict[int, None] = {}  # longest unseen first
        self._rare: dict[int, tuple[int, str]] = {}  # workflows, and the latest of them

    def known(self, pieces: Sequence[int], workflow: str) -> tuple[int, ...]:
        """The pieces of a workflow's prompt that enough workflows have had, this one included."""
        found = []
        for piece in pieces:
            if piece in self._known:
                del self._known[piece]
            else:
                count, latest = self._rare.pop(piece, (0, ""))
                count += latest != workflow or not count
                if count < SHARED_BY:
                    self._rare[piece] = count, workflow
                    continue
            self._known[piece] = None
            found.append(piece)
        for table in (self._known, self._rare):
            while len(table) > _MOST:
                del table[next(iter(table))]
        return tuple(found)

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
