"""Reports the access logs of ended workflows to the predictor, which learns from them."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Protocol

from grpc import StatusCode, aio

from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.rpc.access_logs import MAX_BATCH_RUNS, MAX_STEPS, log_to_wire
from pbkv_cluster.rpc.service_link import ServiceLink, Verdict
from pbkv_cluster.rpc.services import PREDICTOR, Services
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceAsyncStub

log = logging.getLogger(__name__)

MAX_QUEUED_STEPS = 65_536
_TIMEOUT_S = 10.0
_BATCH_STEPS = 512  # in one request; a log with more travels alone


class Deliverer(Protocol):
    """The engine's thread, as seen from here."""

    def deliver(self, call: Callable[..., None], *args: object) -> None:
        """Runs `call` on the event loop; does not wait for it."""


class AccessReporter:
    """Keeps logs until the predictor has taken them; beyond a bound the oldest are dropped.

    `workflow_ended` is called on the engine's thread, everything else on the event loop.
    """

    def __init__(self, services: Services, thread: Deliverer) -> None:
        self._thread = thread
        self._link = ServiceLink(services, PREDICTOR, self._exchange, purpose="access logs")
        self._queue: deque[AccessLog] = deque()
        self._queued_steps = 0
        self._batch: deque[AccessLog] = deque()  # removed from the queue, not yet taken by the predictor
        self._not_empty = asyncio.Event()  # the queue, or the batch
        self.decisions: Counter[str] = Counter()  # logs sent, dropped and refused

    def workflow_ended(self, ended: AccessLog) -> None:
        """Queues a log. Its steps are copied: a step that still runs goes on writing to its own."""
        self._thread.deliver(self._put, ended._replace(steps=[copy(step) for step in ended.steps]))

    async def run(self) -> None:
        """Reports until cancelled."""
        await self._link.run()

    def _put(self, access_log: AccessLog) -> None:
        if len(access_log.steps) > MAX_STEPS or _runs(access_log) > MAX_BATCH_RUNS:
            self.decisions["access_log_dropped"] += 1
            return
        self._queue.append(access_log)
        self._queued_steps += len(access_log.steps)
        while self._queued_steps > MAX_QUEUED_STEPS:
            self._pop()
            self.decisions["access_log_dropped"] += 1
        self._not_empty.set()

    def _pop(self) -> AccessLog:
        oldest = self._queue.popleft()
        self._queued_steps -= len(oldest.steps)
        return oldest

    async def _exchange(self, channel: aio.Channel) -> Verdict:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        while True:
            await self._not_empty.wait()
            if not self._batch:
                self._fill_batch()
            await self._send_batch(stub)
            if not self._queue:
                self._not_empty.clear()

    def _fill_batch(self) -> None:
        steps = runs = 0
        while self._queue:
            steps += len(self._queue[0].steps)
            runs += _runs(self._queue[0])
            if self._batch and (steps > _BATCH_STEPS or runs > MAX_BATCH_RUNS):
                return
            self._batch.append(self._pop())

    async def _send_batch(self, stub: "PredictorServiceAsyncStub") -> None:
        """Sends the batch; if it is refused, each log alone, so that only a malformed one is lost."""
        if len(self._batch) > 1 and await self._is_taken(stub, self._batch):
            self._batch.clear()
        while self._batch:
            if not await self._is_taken(stub, [self._batch[0]]):
                self.decisions["access_log_refused"] += 1
            self._batch.popleft()

    async def _is_taken(self, stub: "PredictorServiceAsyncStub", logs: Sequence[AccessLog]) -> bool:
        """Sends logs; returns False if the predictor refuses them as malformed."""
        request = predictor_pb2.ReportAccessRequest(logs=map(log_to_wire, logs))
        try:
            await stub.ReportAccess(request, timeout=_TIMEOUT_S)
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.INVALID_ARGUMENT:
                raise
            self._link.connected()
            if len(logs) == 1:
                fields = {"workflow": logs[0].workflow, "reason": "access_log_refused"}
                log.warning("the predictor refuses an access log: %s", error.details(), extra=fields)
            return False
        self._link.connected()
        self.decisions["access_log_sent"] += len(logs)
        return True


def _runs(access_log: AccessLog) -> int:
    return sum(len(step.runs) for step in access_log.steps)
