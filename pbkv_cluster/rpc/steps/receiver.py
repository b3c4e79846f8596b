"""The client's side of `OutputService`: takes the output of its steps straight from workers that have invited it.

All steps of a client name its receiver. Where it is connected to the worker, the output comes from there, and the gateway tells
of the end besides; where it is not, the output comes through the gateway, and an invitation with it.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from grpc import aio

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.receiver import ID_BYTES
from pbkv_cluster.core.workflow.step_events import Invitation
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.security import Access
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc, workflow_pb2

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024  # to workers; more of them send their output through the gateway
_CONNECT_S = 2.0
_REST_S = 10.0  # without invitations, after the first that led nowhere; twice as long after each further one in a row
_MOST_DOUBLINGS = 6
_ENDS_S = 1.0  # in which a worker ends a stream that the client has ended

_Place = tuple[str, str]  # address and tenant


class DirectCall(Protocol):
    """What takes the output of one step."""

    def take_direct(self, event: workflow_pb2.StepEvent, connection: object) -> None:
        """An event has come from the worker, over a connection."""
        ...

    def lost(self, connection: object) -> None:
        """A connection has ended."""
        ...


class Receiver:
    """That of one client, for one event loop."""

    def __init__(self, access: Access, clock: Clock | None = None) -> None:
        """Args:
        access: what the client shows to gateways. Its API key is not shown to workers.
        clock: by which it rests; None: the machine's.
        """
        self._id = secrets.token_bytes(ID_BYTES)
        self._access = Access(tls=access.tls)
        self._clock = clock or SystemClock()
        self._numbers = itertools.count(1)
        self._calls: dict[int, DirectCall] = {}
        self._connections: dict[_Place, asyncio.Task[None]] = {}
        self._streams: set[Any] = set()
        self._failures = 0  # in a row
        self._rests_until = 0.0

    @property
    def is_of_use(self) -> bool:
        """Whether output may come straight from some worker; not while none could be reached lately."""
        return bool(self._connections) or not self._is_resting

    def begin(self, call: DirectCall) -> types_pb2.Receiver:
        """What a step's request is to name for the output to come to `call`, until `end`."""
        number = next(self._numbers)
        self._calls[number] = call
        return types_pb2.Receiver(id=self._id, call=number)

    def end(self, number: int) -> None:
        """Nobody waits for the output of a call any more. Harmless when repeated."""
        self._calls.pop(number, None)

    def accept(self, invitation: Invitation) -> None:
        """Connects to a worker, in the background."""
        place = invitation.address, invitation.tenant
        if place not in self._connections and len(self._connections) < MAX_CONNECTIONS and not self._is_resting:
            task = asyncio.create_task(self._receive(invitation), name="output from a worker")
            self._connections[place] = task
            task.add_done_callback(lambda _: self._connections.pop(place, None))

    async def close(self) -> None:
        """Ends all connections."""
        for stream in list(self._streams):
            with suppress(aio.AioRpcError, asyncio.InvalidStateError):  # it has ended already
                await stream.done_writing()
        # The workers end them. See `StepStreams` for what a stream that is cancelled may do to other event loops.
        tasks = list(self._connections.values())
        if tasks:
            await asyncio.wait(tasks, timeout=_ENDS_S)
        await cancel(*tasks)

    async def _receive(self, invitation: Invitation) -> None:
        connection = object()
        try:
            async with connect(invitation.address, access=self._access) as channel:
                stream = worker_pb2_grpc.OutputServiceStub(channel).ReceiveOutput()
                responses = aiter(stream)
                if not await self._is_known_to(stream, responses, invitation.ticket):
                    self._rest()
                    return
                self._failures = 0
                self._streams.add(stream)
                try:
                    async for response in responses:
                        self._take(response.events, connection)
                except aio.AioRpcError as error:  # the calls go on through a gateway
                    log.info("a worker's output has ended: %s", error.details())
                finally:
                    self._streams.discard(stream)
                    for call in list(self._calls.values()):
                        call.lost(connection)
        except InvalidArgument as error:  # of a gateway that is not ours
            log.warning("an invitation cannot be followed: %s", error)

    async def _is_known_to(self, stream: Any, responses: AsyncIterator[Any], ticket: bytes) -> bool:
        """Whether the worker answers, and knows whom it has invited: seen from here, its address may be another one's."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                await stream.write(worker_pb2.ReceiveOutputRequest(ticket=ticket))
                if secrets.compare_digest((await anext(responses)).receiver, self._id):
                    return True
        # `InvalidStateError`: it has ended before it was written to.
        except (TimeoutError, aio.AioRpcError, StopAsyncIteration, asyncio.InvalidStateError) as error:
            log.info("output comes through the gateway: a worker that invites cannot be reached (%s)", type(error).__name__)
        stream.cancel()
        return False

    def _take(self, events: Sequence[worker_pb2.ReceiveOutputResponse.Event], connection: object) -> None:
        for event in events:
            if (call := self._calls.get(event.call)) is not None:
                call.take_direct(event.event, connection)

    @property
    def _is_resting(self) -> bool:
        return self._clock.now() < self._rests_until

    def _rest(self) -> None:
        if self._is_resting:  # it was under way when the rest began, and tells nothing that the one before it has not told
            return
        self._rests_until = self._clock.now() + _REST_S * 2**self._failures
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
