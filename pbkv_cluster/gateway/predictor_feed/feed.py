"""The way of events to the predictor. It never holds a step up: while the predictor is away, the oldest are given up."""

import asyncio
import logging
import math
from collections import deque
from typing import Protocol

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.events import WorkflowEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.predictor_feed.event_stream import EventStream, Refused
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import predictor_pb2
from pbkv_cluster.store.cluster_index import ServiceEntry

log = logging.getLogger(__name__)

PREDICTOR = "predictor"  # its name in the directory
CAPACITY = 8192  # events; about a minute's worth at 100 steps a second
_BATCH = 512  # events in one request
# Between two requests: events within it travel together, for a request costs both sides more than an event does. Forecasts come
# no more often (`predictor.broadcast_interval_s`).
_GATHER_S = 0.002
_RETRY_S = 0.25
_FINISH_S = 1.0  # that a gateway which stops waits for the predictor to take what is queued


class Services(Protocol):
    """Tells where a service is, as the cluster's directory does."""

    async def service(self, name: str) -> ServiceEntry | None:
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
        self._wake = asyncio.Event()  # events have come, or news of the stream
        self._address = ""
        self._refused = False  # the predictor refused a batch, and has not taken one since
        self.reachable = False  # the predictor answered last time
        self._ending = False
        self._ended = asyncio.Event()  # `run` has, or has not begun
        self._ended.set()

    @property
    def address(self) -> str:
        """Where the predictor answered last time, host:port; empty: it did not."""
        return self._address if self.reachable else ""

    def put(self, event: WorkflowEvent) -> None:
        """Queues an event; over capacity, the oldest goes."""
        self._queue.append(convert.event_to_wire(event))
        self._trim()
        self._wake.set()

    async def run(self) -> None:
        """Sends what is queued, until `finish`; asks now and then whether the predictor is there."""
        self._ended.clear()
        try:
            while self._queue or not self._ending:
                last = self._ending
                self.reachable = await self._run_stream()
                if last and not self.reachable:
                    return
                if not self.reachable and (self._queue or not self._ending):
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._ended.set()

    async def finish(self) -> None:
        """Ends `run`, once the predictor has taken what is queued; it is given up if that takes long."""
        self._ending = True
        self._wake.set()
        try:
            async with asyncio.timeout(_FINISH_S):
                await self._ended.wait()
        except TimeoutError:
            log.warning("%d events are given up: the predictor does not take them", len(self._queue))

    async def _run_stream(self) -> bool:
        """Sends until the stream ends; whether the predictor is there all the same, and has but refused a batch."""
        try:
            service = await self._directory.service(PREDICTOR)  # each time: it may have moved
        except Unavailable:
            return False
        if service is None:
            return False
        self._address = service.address
        refusal = ""
        async with connect(service.address) as channel:
            stream = EventStream(channel, self._wake.set)
            try:
                await self._drain(stream)
            except Unavailable:
                pass
            except Refused as error:
                refusal = str(error)
            finally:
                batches = await stream.close()
        dropped = batches.popleft() if refusal and batches else ()
        if dropped:
            self._decisions[Reason.EVENT_DROPPED] += len(dropped)
            if stream.acknowledged or not self._refused:
                log.warning("the predictor refuses events: %s", refusal)
        self._refused = bool(dropped) or (self._refused and not stream.acknowledged)
        # Sending an event twice is harmless: the predictor knows it by its sequence.
        self._queue.extendleft(reversed([event for batch in batches for event in batch]))
        self._trim()
        return bool(dropped)

    async def _drain(self, stream: EventStream) -> None:
        """Sends what comes.

        Raises:
            Refused, Unavailable: as `EventStream.send`.
        """
        loop = asyncio.get_running_loop()
        sent_at = -math.inf
        while True:
            stream.check()
            self.reachable |= stream.answered
            if self._queue and (early := sent_at + _GATHER_S - loop.time()) > 0:
                await asyncio.sleep(early)
            self._wake.clear()
            room = 0 if stream.is_full else _BATCH
            batch = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
            sent_at = loop.time()
            await stream.send(batch)
            if self._ending and not self._queue:
                return await stream.finish()
            if stream.is_full or not self._queue:
                await wait_for(self._wake, stream.patience_s)

    def _trim(self) -> None:
        while len(self._queue) > self._capacity:
            self._queue.popleft()
            self._decisions[Reason.EVENT_DROPPED] += 1
