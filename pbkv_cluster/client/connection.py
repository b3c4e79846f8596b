"""A client's connections to the gateways: one set of each process that uses it, and the calls that are made again.

A client stays with a gateway until a call fails there; then it goes on with the next of its list.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from pbkv_cluster.client.attempts import Attempts, StepAttempts, check_timeout
from pbkv_cluster.client.endpoints import parse_endpoints
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.core.workflow.step_events import StepEvent
from pbkv_cluster.rpc.channel import connect, connect_blocking
from pbkv_cluster.rpc.convert import step_event_from_wire
from pbkv_cluster.rpc.security import Access, this_process
from pbkv_cluster.rpc.steps.direct_output import DirectOutput
from pbkv_cluster.rpc.steps.receiver import Receiver
from pbkv_cluster.rpc.steps.step_output import StepOutput
from pbkv_cluster.rpc.steps.step_streams import StepStreams
from pbkv_cluster.rpc.steps.unsettled import Unsettled
from pbkv_cluster.rpc.v1 import store_pb2_grpc, workflow_pb2, workflow_pb2_grpc

# Calls that must not overtake the ends of a workflow's steps, or would be counted beside them.
_AFTER_STEPS = frozenset(("ReportToolCall", "EndWorkflow", "Prefetch", "LeaseBlocks"))
_SETTLES_S = 1.0  # in which gateways hear from workers of the ends of steps, when a connection closes
_MOST_SETTLES_S = 10.0  # likewise, before a call that must not overtake them
_OF_CACHES = frozenset(("Prefetch", "LeaseBlocks", "ReleaseBlocks"))  # calls of `StoreService`


class _Gateway:
    """The calls of one gateway's services, of the kind that the channel is of: blocking, or for asyncio."""

    def __init__(self, channel: Any) -> None:
        self._workflows = workflow_pb2_grpc.WorkflowServiceStub(channel)
        self._caches = store_pb2_grpc.StoreServiceStub(channel)

    def __getattr__(self, method: str) -> Any:
        return getattr(self._caches if method in _OF_CACHES else self._workflows, method)


class Connection:
    """For code without asyncio; may be used by several threads, and by processes forked after it was made."""

    def __init__(self, endpoint: str | Sequence[str], timeout_s: float, access: Access) -> None:
        """Args:
        endpoint: see `parse_endpoints`; the first call connects.
        timeout_s: seconds that a call may take, with all its attempts, if it is not a step.
        access: what the connection shows.

        Raises:
            InvalidArgument: names the argument that is out of its range.
        """
        self._endpoints = parse_endpoints(endpoint)
        check_timeout(timeout_s)
        self._timeout_s = timeout_s
        self._access = access
        self._lock = threading.Lock()
        self._current = 0  # position in the endpoints
        self._open()

    def call(self, method: str, request: Message) -> Any:
        """Makes a call that does nothing more when it is made twice; returns its answer.

        Raises:
            PbkvError: it has failed.
        """
        attempts = Attempts(len(self._endpoints), self._timeout_s)
        while True:
            current, stub = self._stub()
            try:
                return getattr(stub, method)(request, timeout=attempts.timeout_s)
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
            self._leave(current)
            time.sleep(pause_s)

    def step(self, request: workflow_pb2.SubmitStepRequest, timeout_s: float | None) -> Iterator[StepEvent]:
        """The events of a step, wherever it runs. Closing the iterator cancels it.

        Raises:
            PbkvError: it has failed.
        """
        attempts = StepAttempts(request, len(self._endpoints), timeout_s)
        while True:
            current, stub = self._stub()
            call = stub.SubmitStep(attempts.message(), timeout=attempts.timeout_s)
            try:
                for message in call:
                    event = step_event_from_wire(message)
                    if event is not None and attempts.take(event):
                        yield event
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
            else:
                return
            finally:
                call.cancel()
            self._leave(current)
            time.sleep(pause_s)

    def close(self) -> None:
        if os.getpid() == self._pid:
            for channel in self._channels:
                channel.close()

    def _stub(self) -> tuple[int, _Gateway]:
        """The present gateway, on a channel of this very process: those of one that was forked are not usable."""
        if os.getpid() != self._pid:
            self._open()
        current = self._current
        return current, self._stubs[current]

    def _leave(self, current: int) -> None:
        """A gateway does not serve; unless another thread has left it, go on with the next one."""
        with self._lock:
            if self._current == current:
                self._current = (current + 1) % len(self._endpoints)

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._channels = [connect_blocking(each, access=self._access) for each in self._endpoints]
        self._stubs = [_Gateway(channel) for channel in self._channels]
        self._pid = os.getpid()


class AsyncConnection:
    """For asyncio, whose event loop belongs to one process."""

    def __init__(self, endpoint: str | Sequence[str], timeout_s: float, access: Access, direct: bool = True) -> None:
        """Arguments and errors as for `Connection`; `direct`: output may come straight from workers."""
        endpoints = parse_endpoints(endpoint)
        check_timeout(timeout_s)
        self._timeout_s = timeout_s
        self._current = 0
        self._channels: list[aio.Channel] = [connect(each, "endpoint", access=access) for each in endpoints]
        self._stubs = [_Gateway(channel) for channel in self._channels]
        # The steps at each of them, over one stream.
        self._steps = [StepStreams(stub.SubmitSteps, workflow_pb2.SubmitStepsRequest) for stub in self._stubs]
        self._receiver = Receiver(access) if direct else None
        self._unsettled = Unsettled()
        self._pid = os.getpid()

    async def call(self, method: str, request: Message) -> Any:
        """As `Connection.call`.

        Raises:
            FailedPrecondition: this process has been forked since the connection was made.
        """
        self._check_process()
        attempts = Attempts(len(self._stubs), self._timeout_s)
        if method in _AFTER_STEPS:
            await self._unsettled.wait(request.workflow_id, min(_MOST_SETTLES_S, self._timeout_s / 2))  # type: ignore[attr-defined]
        while True:
            current = self._current
            try:
                return await getattr(self._stubs[current], method)(request, timeout=attempts.timeout_s)
            except aio.AioRpcError as error:
                pause_s = attempts.pause_s(error)
            self._leave(current)
            await asyncio.sleep(pause_s)

    async def step(self, request: workflow_pb2.SubmitStepRequest, timeout_s: float | None) -> AsyncGenerator[StepEvent, None]:
        """As `Connection.step`; errors as for `call`."""
        self._check_process()
        attempts = StepAttempts(request, len(self._stubs), timeout_s)
        while True:
            current = self._current
            output = self._output(current, attempts)
            try:
                async for event in output:
                    if attempts.take(event):
                        yield event
            except aio.AioRpcError as error:
                pause_s = attempts.pause_s(error)
            else:
                return
            finally:
                output.cancel()
            if not output.has_lost_worker:
                self._leave(current)
            await asyncio.sleep(pause_s)

    def _output(self, current: int, attempts: StepAttempts) -> StepOutput:
        """Sends a step."""
        streams, message = self._steps[current], attempts.message()
        message.after[:] = self._unsettled.latest(message.workflow_id)
        if self._receiver is None or not self._receiver.is_of_use or message.HasField("resume"):
            message.ClearField("receiver")
            return StepOutput(streams, message, attempts.timeout_s)
        return DirectOutput(streams, message, attempts.timeout_s, self._receiver, self._unsettled)

    async def close(self) -> None:
        await self._unsettled.wait(None, _SETTLES_S)
        for steps in self._steps:
            await steps.close()
        if self._receiver is not None:
            await self._receiver.close()
        for channel in self._channels:
            await channel.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                f"this AsyncClient belongs to process {self._pid}: make one in each process, or use Client"
            )

    def _leave(self, current: int) -> None:
        if self._current == current:
            self._current = (current + 1) % len(self._stubs)


def access(api_key: str, tls_ca: str) -> Access:
    """What a client's arguments say that it shows; without any, what this process does.

    Raises:
        InvalidArgument: `tls_ca` holds no certificates, or the key has characters that no key has.
    """
    if not (api_key.isascii() and (api_key.isprintable() or not api_key)):
        raise InvalidArgument("api_key", "must have printable ASCII characters only")
    return Access(api_key, Tls.of_client(tls_ca)) if api_key or tls_ca else this_process().access
