"""Clients that watch what workflows do. Nobody waits for them, and without one nothing is kept."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.inspection.agents import CallSite
from pbkv_cluster.rpc.v1 import inspection_pb2, types_pb2

QUEUE_BYTES = 64 << 20  # that one client has not read yet
WATCHES_MAX = 8


class Watch:
    """One client's. Iterating over it yields events until the client has fallen behind."""

    def __init__(self, with_token_ids: bool, queue_bytes: int) -> None:
        self.with_token_ids = with_token_ids
        self._room_bytes = queue_bytes
        self._queue: deque[inspection_pb2.WatchedEvent] = deque()
        self._wake = asyncio.Event()
        self._behind = False

    def put(self, event: inspection_pb2.WatchedEvent) -> None:
        self._room_bytes -= event.ByteSize()
        self._behind = self._behind or self._room_bytes < 0
        if not self._behind:
            self._queue.append(event)
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[inspection_pb2.WatchedEvent]:
        """Raises:
        ResourceExhausted: the client reads too slowly.
        """
        while True:
            while self._queue:
                event = self._queue.popleft()
                self._room_bytes += event.ByteSize()
                yield event
            if self._behind:
                raise ResourceExhausted("the watch has ended: its client reads too slowly")
            self._wake.clear()
            await self._wake.wait()


class Watchers:
    """All of them."""

    def __init__(self, clock: Clock, queue_bytes: int = QUEUE_BYTES) -> None:
        """Args:
        clock: dates steps.
        queue_bytes: that each may leave unread.
        """
        self._clock = clock
        self._queue_bytes = queue_bytes
        self._watches: set[Watch] = set()

    def open(self, with_token_ids: bool) -> Watch:
        """A watch from now on; `close` it.

        Raises:
            ResourceExhausted: there are too many.
        """
        if len(self._watches) >= WATCHES_MAX:
            raise ResourceExhausted(f"more than {WATCHES_MAX} clients watch")
        watch = Watch(with_token_ids, self._queue_bytes)
        self._watches.add(watch)
        return watch

    def close(self, watch: Watch) -> None:
        self._watches.discard(watch)

    def event(self, event: WorkflowEvent) -> None:
        """Tells of a workflow's tool calls and of its end."""
        if not self._watches or event.kind not in (EventKind.TOOL_STARTED, EventKind.WORKFLOW_ENDED):
            return
        told = inspection_pb2.WatchedEvent(workflow_id=event.workflow, workload=event.workload, time_s=event.time)
        if event.kind is EventKind.TOOL_STARTED:
            told.tool = event.tool
        else:
            told.end.SetInParent()
        for watch in self._watches:
            watch.put(told)

    def step(
        self, site: CallSite, workflow: str, prompt: bytes, output: bytes, keys: Callable[[], Sequence[bytes]], usage: Usage
    ) -> None:
        """Tells of a step that has ended.

        Args:
            site: that called the model.
            workflow: its id.
            prompt: packed.
            output: packed.
            keys: returns those of the full blocks of both, the same whatever engine has computed them.
            usage: of the step.
        """
        if not self._watches:
            return
        now = self._clock.wall()
        step = inspection_pb2.WatchedStep(
            agent_id=site.agent,
            call_site=site.call_site,
            started_s=now - usage.total_s,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.generated_tokens,
            available_tokens=usage.available_tokens,
            delivered_tokens=sum(usage.delivered.values()),
            block_keys=b"".join(keys()),
        )
        told = inspection_pb2.WatchedEvent(workflow_id=workflow, workload=site.workload, time_s=now, step=step)
        whole: inspection_pb2.WatchedEvent | None = None
        for watch in self._watches:
            if not watch.with_token_ids:
                watch.put(told)
                continue
            if whole is None:
                whole = inspection_pb2.WatchedEvent()
                whole.CopyFrom(told)
                whole.step.prompt.CopyFrom(types_pb2.PackedTokens(data=prompt))
                whole.step.output.CopyFrom(types_pb2.PackedTokens(data=output))
            watch.put(whole)
