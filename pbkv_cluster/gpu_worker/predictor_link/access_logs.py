"""Sends the access logs of workflows that have ended to the predictor, which learns from them."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from grpc import StatusCode, aio

from pbkv_cluster.core.access_log import AccessLog, StepLog
from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.predictor_link.forecasts import AddressSource
from pbkv_cluster.rpc.access_logs import MAX_BATCH_RUNS, MAX_STEPS, log_to_wire
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceAsyncStub

log = logging.getLogger(__name__)

_PAUSE_S = 0.5  # before the predictor is looked for again
_TIMEOUT_S = 10.0
_BATCH_STEPS = 512  # that travel together; a log that alone has more travels alone
_QUEUED_STEPS = 65_536


class AccessReporter:
    """Keeps logs until the predictor has taken them, wherever it is.

    While it is away they wait, and beyond a bound the oldest are dropped. `ended` is the engine thread's; all else belongs to
    the event loop.
    """

    def __init__(self, predictor: AddressSource, thread: EngineThread) -> None:
        self._predictor = predictor
        self._thread = thread
        self._background = Background()
        self._queue: deque[AccessLog] = deque()
        self._queued_steps = 0
        self._sending: deque[AccessLog] = deque()  # taken from the queue, not yet taken by the predictor
        self._filled = asyncio.Event()
        self._connected = False
        self.decisions: Counter[str] = Counter()  # logs sent, dropped and refused

    def start(self) -> None:
        self._background.start(self._run(), "access logs")

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended it."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()

    def ended(self, workflow: str, steps: Sequence[StepLog]) -> None:
        """A workflow has ended. Its steps are copied, for one that still runs goes on writing its own."""
        self._thread.deliver(self._enter, AccessLog(workflow, [copy(step) for step in steps]))

    def _enter(self, each: AccessLog) -> None:
        if len(each.steps) > MAX_STEPS or sum(len(step.runs) for step in each.steps) > MAX_BATCH_RUNS:
            self.decisions["access_log_dropped"] += 1
            return
        self._queue.append(each)
        self._queued_steps += len(each.steps)
        while self._queued_steps > _QUEUED_STEPS:
            self._take_oldest()
            self.decisions["access_log_dropped"] += 1
        self._filled.set()

    def _take_oldest(self) -> AccessLog:
        oldest = self._queue.popleft()
        self._queued_steps -= len(oldest.steps)
        return oldest

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            try:
                address = await self._predictor()
                if address is not None:
                    await self._send_to(address)
            except PbkvError as error:
                self._away(str(error))
            except aio.AioRpcError as error:
                self._away(error.details() or error.code().name)
            await asyncio.sleep(_PAUSE_S)

    async def _send_to(self, address: str) -> None:
        """Sends for as long as the predictor takes it."""
        async with connect(address) as channel:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            while True:
                await self._filled.wait()
                if not self._sending:
                    self._next_batch()
                await self._send(stub)
                self._connected = True
                if not self._queue:
                    self._filled.clear()

    def _next_batch(self) -> None:
        steps = runs = 0
        while self._queue:
            steps += len(self._queue[0].steps)
            runs += sum(len(step.runs) for step in self._queue[0].steps)
            if self._sending and (steps > _BATCH_STEPS or runs > MAX_BATCH_RUNS):
                return
            self._sending.append(self._take_oldest())

    async def _send(self, stub: "PredictorServiceAsyncStub") -> None:
        """Sends what is in hand; where it is refused each log alone, so that only a wrong one is lost."""
        if await self._taken(stub, self._sending):
            self._sending.clear()
        while self._sending:
            if not await self._taken(stub, [self._sending[0]]):
                self.decisions["access_log_refused"] += 1
            self._sending.popleft()

    async def _taken(self, stub: "PredictorServiceAsyncStub", logs: Sequence[AccessLog]) -> bool:
        """Whether the predictor took the logs; False: they are wrong."""
        request = predictor_pb2.ReportAccessRequest(logs=map(log_to_wire, logs))
        try:
            await stub.ReportAccess(request, timeout=_TIMEOUT_S)
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.INVALID_ARGUMENT:
                raise
            if len(logs) == 1:
                log.warning("the predictor refuses the access log of workflow %r: %s", logs[0].workflow, error.details())
            return False
        self.decisions["access_log_sent"] += len(logs)
        return True

    def _away(self, why: str) -> None:
        if self._connected:
            log.warning("access logs wait for the predictor: %s", why)
        self._connected = False
