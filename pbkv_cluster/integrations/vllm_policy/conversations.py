"""Recognises which requests belong together where they do not say so: a conversation's next prompt contains the one before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count

_SHARED = ""  # instead of a workflow: several had a prompt that ended there


class Conversations:
    """Workflows by the last chunks of their prompts.

    A request goes on with a workflow if its prompt is longer than one of the workflow's and contains it. A prompt that has been
    seen before to its last chunk says nothing, since it may be an instruction with which many conversations begin.
    """

    def __init__(self, capacity: int = 1 << 16) -> None:
        """Args:
        capacity: prompts that are remembered; beyond, those that were seen longest ago are forgotten.
        """
        self._capacity = capacity
        self._by_end: OrderedDict[bytes, str] = OrderedDict()
        self._numbers = count(1)

    def workflow(self, chunks: Sequence[bytes]) -> str:
        """The workflow of a request, perhaps a new one.

        Args:
            chunks: hashes of its prompt's chunks, each of which stands for all tokens up to its end.
        """
        if not chunks:
            return self._new()
        found = next((self._by_end[chunk] for chunk in reversed(chunks[:-1]) if chunk in self._by_end), _SHARED)
        workflow = found or self._new()
        end = chunks[-1]
        before = self._by_end.pop(end, workflow)
        self._by_end[end] = workflow if before == workflow else _SHARED
        if len(self._by_end) > self._capacity:
            self._by_end.popitem(last=False)
        return workflow

    def _new(self) -> str:
        return f"conversation-{next(self._numbers)}"
