"""`OutputService` on the wire: a receiver's connection."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from pbkv_cluster.core.fairness.fair_room import has_fair_room
from pbkv_cluster.gpu_worker.direct.receivers import ConnectedReceiver, Receivers
from pbkv_cluster.gpu_worker.direct.tickets import TICKET_S
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc

MAX_STRANGERS = 256  # calls that have shown no ticket yet


class OutputServicer(worker_pb2_grpc.OutputServiceServicer):
    """See proto/pbkv/v1/worker.proto."""

    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._strangers: Counter[str] = Counter()  # by the machine that they come from

    async def ReceiveOutput(  # noqa: N802
        self, requests: AsyncIterator[worker_pb2.ReceiveOutputRequest], context: Any
    ) -> AsyncIterator[worker_pb2.ReceiveOutputResponse]:
        with self._stranger(context.peer()):
            ticket = await _ticket(requests)
        key, receiver = self._receivers.connect(ticket)
        # A generator whose call is cancelled while it writes ends only when it is garbage collected. Its steps must end now.
        context.add_done_callback(lambda _: self._receivers.disconnect(key, receiver))
        watching = asyncio.create_task(_until_it_leaves(requests, receiver), name="a receiver's own side")
        try:
            yield worker_pb2.ReceiveOutputResponse(receiver=key.id)
            while receiver.is_connected:
                response = receiver.outbox.take()
                if response is None:
                    await receiver.outbox.changed()
                else:
                    yield response
        finally:
            self._receivers.disconnect(key, receiver)
            await cancel(watching)

    @contextmanager
    def _stranger(self, peer: str) -> Iterator[None]:
        """Counts a call while it has shown no ticket.

        Raises:
            ResourceExhausted: too many have shown none, or those of its machine leave room to others.
        """
        host = peer.rpartition(":")[0]
        if not has_fair_room(self._strangers[host], self._strangers.total(), MAX_STRANGERS):
            raise ResourceExhausted(f"{self._strangers.total()} calls that have shown no ticket are open already")
        self._strangers[host] += 1
        try:
            yield
        finally:
            self._strangers[host] -= 1
            if not self._strangers[host]:
                del self._strangers[host]


async def _ticket(requests: AsyncIterator[worker_pb2.ReceiveOutputRequest]) -> bytes:
    """Raises:
    InvalidArgument: there is none.
    DeadlineExceeded: it does not come while it could be good.
    """
    try:
        async with asyncio.timeout(TICKET_S):
            return (await anext(requests)).ticket
    except TimeoutError:
        raise DeadlineExceeded(f"no ticket within {TICKET_S:g} s") from None
    except StopAsyncIteration:
        raise InvalidArgument("ticket", "is missing") from None


async def _until_it_leaves(requests: AsyncIterator[worker_pb2.ReceiveOutputRequest], receiver: ConnectedReceiver) -> None:
    async for _ in requests:
        pass
    receiver.disconnect()
