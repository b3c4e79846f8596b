"""Sends workflow events to the predictor, without ever delaying a step: while the predictor is away, the oldest are dropped.

A predictor that has restarted knows no open workflow. It is told their histories first, see `histories.py`.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence

from grpc import aio

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.predictor_feed.event_stream import EventStream, StreamLimits, StreamState, size_bytes
from pbkv_cluster.gateway.predictor_feed.histories import Histories
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.service_link import ServiceLink, Verdict
from pbkv_cluster.rpc.services import PREDICTOR, Services
from pbkv_cluster.rpc.v1 import predictor_pb2

log = logging.getLogger(__name__)

CAPACITY = 8192  # events; about a minute's worth at 100 steps a second
CAPACITY_BYTES = 64 << 20  # of these events; most have below 2 KB, with a step graph up to 70
# Between two requests, so that events of one burst travel together: a request costs both sides more than an event does.
# Forecasts are broadcast no more often (`predictor.broadcast_interval_s`).
_GATHER_S = 0.002
_FINISH_S = 1.0


class EventFeed:
    """A bounded queue of events, sent in order by one task. An event that is not dropped arrives at least once."""

    def __init__(
        self,
        services: Services,
        decisions: Decisions,
        capacity: int = CAPACITY,
        limits: StreamLimits | None = None,
        capacity_bytes: int = CAPACITY_BYTES,
    ) -> None:
        """Args:
        services: finds the predictor.
        decisions: counts dropped events.
        capacity: events that wait.
        limits: of a stream.
        capacity_bytes: of the events that wait, on the wire.
        """
        self._decisions = decisions
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._queued_bytes = 0
        self._limits = limits or StreamLimits()
        # Events in wire form: a third of the memory, and converted once however often they are sent.
        self._queue: deque[predictor_pb2.WorkflowEvent] = deque()
        self._histories = Histories()
        self._told_instance = 0  # of the predictor that knows the open workflows
        self._again: deque[predictor_pb2.WorkflowEvent] = deque()  # events of histories that this stream has still to tell
        self._telling = 0  # events of histories in all that this stream tells
        self._wake = asyncio.Event()  # events were queued, or the stream has changed
        self._suspects: set[tuple[str, int]] = set()  # workflow and sequence of events of a refused batch: sent singly
        self._refusing = False  # the predictor refused the latest events
        self._finishing = False
        self._link = ServiceLink(services, PREDICTOR, self._exchange, purpose="events")

    @property
    def reachable(self) -> bool:
        """Whether the predictor answered last time."""
        return self._link.is_connected

    @property
    def address(self) -> str:
        """host:port of the predictor; empty if it did not answer last time."""
        return self._link.state.address if self.reachable else ""

    def history(self, workflow: str) -> Sequence[predictor_pb2.WorkflowEvent]:
        """The events of an open workflow, in order, as far as they are kept; see `histories.py`."""
        return self._histories.of(workflow)

    def forget(self, workflow: str) -> None:
        """Another gateway tells of this workflow now."""
        self._histories.drop(workflow)

    @property
    def queued(self) -> int:
        """Events that wait to be sent."""
        return len(self._queue)

    def put(self, event: WorkflowEvent) -> None:
        """Queues an event; over capacity, the oldest is dropped."""
        message = convert.event_to_wire(event)
        self._histories.add(message)
        self._queue.append(message)
        self._queued_bytes += message.ByteSize()
        self._trim()
        self._wake.set()

    async def run(self) -> None:
        """Sends what is queued, until `finish`; while nothing is, asks now and then whether the predictor is there."""
        await self._link.run()

    async def finish(self, timeout_s: float = _FINISH_S) -> None:
        """Ends `run` once the predictor has taken all events, and gives them up after `timeout_s` seconds."""
        self._finishing = True
        self._wake.set()
        if not await self._link.finish(timeout_s):
            log.warning("%d events are given up: the predictor does not take them", len(self._queue))

    async def _exchange(self, channel: aio.Channel) -> Verdict:
        stream = EventStream(channel, self._limits, self._wake.set)
        state, problem, refused = StreamState.LOST, "", False
        try:
            state = await self._send_queued(stream)
            problem = stream.problem
        finally:
            try:
                await stream.close()
            finally:  # even if closing is cancelled
                self._refusing = self._refusing and not stream.acknowledged_events
                refused = state is StreamState.REFUSED and bool(stream.unacknowledged)
                if refused:
                    self._handle_refused(stream, problem)
                self._requeue(stream)
        if state is StreamState.FINISHED:
            return Verdict.AGAIN if self._queue else Verdict.DONE
        if refused:
            self._link.connected()
            return Verdict.AGAIN
        raise Unavailable(problem)

    async def _send_queued(self, stream: EventStream) -> StreamState:
        """Sends events as they are queued, until the stream ends; returns the state that it ended in."""
        loop = asyncio.get_running_loop()
        sent_at = -math.inf
        while stream.state is StreamState.OPEN:
            if stream.instance is not None:
                self._link.connected()
                self._tell_again(stream, stream.instance)
            if self._pending and (early_s := sent_at + _GATHER_S - loop.time()) > 0:
                await asyncio.sleep(early_s)
            self._wake.clear()
            # Who it is decides what it is told first.
            batch = [] if stream.is_full or stream.instance is None else self._next_batch()
            sent_at = loop.time()
            if await stream.send(batch) is not StreamState.OPEN:
                break
            if self._finishing and not self._pending:
                return await stream.finish()
            if stream.is_full or stream.instance is None or not self._pending:
                await wait_for(self._wake, stream.send_within_s)
        return stream.state

    @property
    def _pending(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._again or self._queue)

    def _tell_again(self, stream: EventStream, instance: int) -> None:
        """Has a predictor that does not know the open workflows told their histories, before anything else."""
        if instance == self._told_instance:
            return
        if not self._telling:
            self._again.extend(self._histories.events())
            self._telling = len(self._again)
        if not self._again and stream.acknowledged_events >= self._telling:
            self._told_instance = instance

    def _next_batch(self) -> list[predictor_pb2.WorkflowEvent]:
        """Takes events out of the histories to be told, and out of the queue."""
        batch: list[predictor_pb2.WorkflowEvent] = []
        batch_bytes = 0
        while self._pending and len(batch) < self._limits.batch_events:
            source = self._again or self._queue
            event_bytes = source[0].ByteSize()
            alone = _identity(source[0]) in self._suspects
            if batch and (alone or batch_bytes + event_bytes > self._limits.batch_bytes):
                break
            if source is self._queue:
                self._queued_bytes -= event_bytes
            batch.append(source.popleft())
            batch_bytes += event_bytes
            if alone:
                break
        return batch

    def _handle_refused(self, stream: EventStream, problem: str) -> None:
        """Has the events of a refused batch sent again, each alone, and drops one that is refused alone."""
        refused = stream.unacknowledged[0]
        if len(refused) > 1:
            self._suspects = {_identity(event) for event in refused}
            return
        stream.unacknowledged.popleft()
        self._histories.drop(refused[0].workflow_id)  # it would be refused again
        self._telling = max(self._telling - 1, 0)
        self._decisions[Reason.EVENT_DROPPED] += 1
        if not self._refusing:
            log.warning("the predictor refuses events: %s", problem, extra={"reason": Reason.EVENT_DROPPED.value})
        self._refusing = True

    def _requeue(self, stream: EventStream) -> None:
        # To send an event twice does no harm: the predictor knows it by its sequence number. What was told again is told from
        # the histories once more, unless all of it has arrived.
        unacknowledged = [event for batch in stream.unacknowledged for event in batch]
        again = unacknowledged[max(self._telling - len(self._again) - stream.acknowledged_events, 0) :]
        self._again.clear()
        self._telling = 0
        self._queue.extendleft(reversed(again))
        self._queued_bytes += size_bytes(again)
        self._trim()

    def _trim(self) -> None:
        while len(self._queue) > self._capacity or self._queued_bytes > self._capacity_bytes:
            self._queued_bytes -= self._queue.popleft().ByteSize()
            self._decisions[Reason.EVENT_DROPPED] += 1


def _identity(event: predictor_pb2.WorkflowEvent) -> tuple[str, int]:
    return event.workflow_id, event.sequence
