"""The way of events to the predictor. It never holds a step up: while the predictor is away, the oldest are given up."""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

import grpc
from grpc import aio

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.events import WorkflowEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc
from pbkv_cluster.store.cluster_index import ServiceRecord

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceAsyncStub

log = logging.getLogger(__name__)

PREDICTOR = "predictor"  # its name in the directory
CAPACITY = 8192  # events; about a minute's worth at 100 steps a second
_BATCH = 512  # events in one call
_GATHER_S = 0.002  # between two calls: events within it travel together, for a call costs both sides more than an event does
_CALL_TIMEOUT_S = 2.0
_PING_S = 1.0
_RETRY_S = 0.25
# The predictor, or the way to it, is gone. Whatever else a batch fails with, it would fail with again.
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class Services(Protocol):
    """Tells where a service is, as the cluster's directory does."""

    async def service(self, name: str) -> ServiceRecord | None:
        """Raises:
        Unavailable: it cannot be found out now.
        """
        ...


class EventFeed:
    """A bounded queue of events, drained by one task, in order."""

    def __init__(self, directory: Services, decisions: Decisions, capacity: int = CAPACITY) -> None:
        self._directory = directory
        self._decisions = decisions
        self._capacity = capacity
        # As they travel: a third of the memory, and made once however often they are sent.
        self._queue: deque[predictor_pb2.WorkflowEvent] = deque()
        self._filled = asyncio.Event()
        self._address = ""
        self._channel: aio.Channel | None = None
        self._stub: PredictorServiceAsyncStub | None = None
        self._refused = False  # the predictor refused the latest batch
        self.reachable = False  # the predictor answered last time

    @property
    def address(self) -> str:
        """Where the predictor answered last time, host:port; empty: it did not."""
        return self._address if self.reachable else ""

    def put(self, event: WorkflowEvent) -> None:
        """Queues an event; over capacity, the oldest goes."""
        self._queue.append(convert.event_to_wire(event))
        self._trim()
        self._filled.set()

    async def run(self) -> None:
        """Sends what is queued, for ever; while there is nothing, asks now and then whether the predictor is there."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time() - _GATHER_S
        while True:
            await wait_for(self._filled, _PING_S)
            if self._queue and (early := sent_at + _GATHER_S - loop.time()) > 0:
                await asyncio.sleep(early)
            sent_at = loop.time()
            self._filled.clear()
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self.reachable = await self._send(batch)
            if not self.reachable:
                # Sending an event twice is harmless: the predictor knows it by its sequence.
                self._queue.extendleft(reversed(batch))
                self._trim()
                await asyncio.sleep(_RETRY_S)
            if self._queue:
                self._filled.set()

    async def close(self) -> None:
        await self._disconnect()

    async def _send(self, events: list[predictor_pb2.WorkflowEvent]) -> bool:
        """Whether the predictor answered; what it refuses is given up."""
        try:
            stub = await self._connect()
        except Unavailable:
            return False
        request = predictor_pb2.ReportEventsRequest(events=events)
        try:
            await stub.ReportEvents(request, timeout=_CALL_TIMEOUT_S)
        except aio.AioRpcError as error:
            self._address = ""  # whatever the reason, the predictor may have moved: look it up again
            if error.code() in _AWAY:
                return False
            self._decisions[Reason.EVENT_DROPPED] += len(events)
            if not self._refused:
                log.warning("the predictor refuses events: %s: %s", error.code().name, error.details())
            self._refused = True
        else:
            self._refused = False
        return True

    async def _connect(self) -> "PredictorServiceAsyncStub":
        if not self._address:
            service = await self._directory.service(PREDICTOR)
            if service is None:
                raise Unavailable("no predictor is announced")
            await self._disconnect()
            self._address = service.address
            self._channel = connect(service.address)
            self._stub = predictor_pb2_grpc.PredictorServiceStub(self._channel)
        assert self._stub is not None
        return self._stub

    async def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _trim(self) -> None:
        while len(self._queue) > self._capacity:
            self._queue.popleft()
            self._decisions[Reason.EVENT_DROPPED] += 1
