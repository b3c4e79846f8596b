"""Events of many steps, on their way over one stream: those that wait together travel in one message."""

import asyncio
from collections import deque
from typing import Any

from pbkv_cluster.core.fairness.fair_room import has_fair_room
from pbkv_cluster.rpc.v1 import worker_pb2, workflow_pb2

Response = type[worker_pb2.RunStepsResponse] | type[workflow_pb2.SubmitStepsResponse] | type[worker_pb2.ReceiveOutputResponse]
_MESSAGE_BYTES = 1 << 20  # of the events that travel together, unless one is larger alone
WAITING_BYTES = 4 << 20  # of events that have not been sent to a slow reader; beyond that the steps wait


class SharedRoom:
    """Bounds what waits in many outboxes together.

    Each may have a multiple of what is left (`core.fairness.fair_room`), so that slow readers leave room to others, and whoever
    takes what is sent is not held up by those who take nothing. An outbox in which nothing waits has room whatever the others
    have: above the bound there is one output of each step that runs, at most.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """`capacity_bytes`: of events, as encoded."""
        self._capacity_bytes = capacity_bytes
        self._bytes = 0

    @property
    def bytes_waiting(self) -> int:
        return self._bytes

    def has_room(self, held_bytes: int) -> bool:
        """Whether an outbox that holds so much may take more."""
        return not held_bytes or has_fair_room(held_bytes, self._bytes, self._capacity_bytes)

    def take(self, size_bytes: int) -> None:
        """Less than 0 gives it back."""
        self._bytes += size_bytes


class Outbox:
    """What waits to be sent, and the message that is being sent."""

    def __init__(self, response: Response, shared_room: SharedRoom | None = None) -> None:
        """Args:
        response: the messages that are sent.
        shared_room: bounds what waits here and elsewhere; None: only the outbox's own bound counts.
        """
        self._response = response
        self._shared_room = shared_room
        self._responses: deque[Any] = deque()  # the last takes more events
        self._sizes: deque[int] = deque()  # bytes of the events in each
        self._sending_bytes = 0  # of the message that was taken last
        self._bytes = 0  # of all of them
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()

    async def room(self) -> None:
        """Waits while too much waits to be sent, here or in all outboxes that share their room."""
        while not self._has_room:
            # Only what is taken from here can make room: the last of it does, whatever the others have.
            self._sent.clear()
            await self._sent.wait()

    def add(self, size_bytes: int) -> Any:
        """Makes room for an event of so many bytes; returns the events to which it is to be added."""
        if not self._responses or self._sizes[-1] + size_bytes > _MESSAGE_BYTES:
            self._responses.append(self._response())
            self._sizes.append(0)
        self._sizes[-1] += size_bytes
        self._count(size_bytes)
        self._changed.set()
        return self._responses[-1].events

    def take(self) -> Any:
        """The next message; None: nothing waits. The one before it has been sent."""
        self._count(-self._sending_bytes)
        self._sending_bytes = 0
        self._sent.set()
        if not self._responses:
            return None
        self._sending_bytes = self._sizes.popleft()
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
        self._count(-self._bytes)
        self._sending_bytes = 0
        self._sent.set()
        self._changed.set()

    @property
    def _has_room(self) -> bool:
        return self._bytes <= WAITING_BYTES and (self._shared_room is None or self._shared_room.has_room(self._bytes))

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._shared_room is not None:
            self._shared_room.take(size_bytes)
