"""Events of many steps, on their way over one stream: those that wait together travel in one message."""

import asyncio
from collections import deque
from typing import Any

from pbkv_cluster.rpc.v1 import worker_pb2, workflow_pb2

Response = type[worker_pb2.RunStepsResponse] | type[workflow_pb2.SubmitStepsResponse] | type[worker_pb2.ReceiveOutputResponse]
_MESSAGE_BYTES = 1 << 20  # of the events that travel together, unless one is larger alone
WAITING_BYTES = 4 << 20  # of events that a slow reader has not taken; beyond that the steps wait


class Outbox:
    """What waits to be sent."""

    def __init__(self, response: Response) -> None:
        """`response`: the messages that are sent."""
        self._response = response
        self._responses: deque[Any] = deque()  # the last takes more events
        self._sizes: deque[int] = deque()  # bytes of the events in each
        self._bytes = 0  # of all of them
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def room(self) -> None:
        """Waits while too much waits to be sent."""
        if not self._has_room.is_set():
            await self._has_room.wait()

    def add(self, size_bytes: int) -> Any:
        """Makes room for an event of so many bytes; returns the events to which it is to be added."""
        if not self._responses or self._sizes[-1] + size_bytes > _MESSAGE_BYTES:
            self._responses.append(self._response())
            self._sizes.append(0)
        self._sizes[-1] += size_bytes
        self._bytes += size_bytes
        if self._bytes > WAITING_BYTES:
            self._has_room.clear()
        self._changed.set()
        return self._responses[-1].events

    def take(self) -> Any:
        """The next message; None: nothing waits."""
        if not self._responses:
            return None
        self._bytes -= self._sizes.popleft()
        if self._bytes <= WAITING_BYTES:
            self._has_room.set()
        return self._responses.popleft()

    def wake(self) -> None:
        """Has `changed` return."""
        self._changed.set()

    async def changed(self) -> None:
        """Waits for an event that comes after `take` has found none, or for `wake`."""
        self._changed.clear()
        await self._changed.wait()

    def close(self) -> None:
        """Nobody reads any more: nothing waits, and nobody waits for room."""
        self._responses.clear()
        self._sizes.clear()
        self._bytes = 0
        self._has_room.set()
        self._changed.set()
