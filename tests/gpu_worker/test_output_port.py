"""The port at which a worker hands out output: what those may cost it who have shown no ticket yet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.gpu_worker.direct import servicer as module
from pbkv_cluster.gpu_worker.direct.receivers import Receivers
from pbkv_cluster.gpu_worker.direct.servicer import OutputServicer
from pbkv_cluster.gpu_worker.direct.tickets import ReceiverKey
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.server import STRANGER_MESSAGE_BYTES, STRANGER_STREAMS, RpcServer
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc
from tests.polling import eventually

DEADLINE_S = 20.0


class Port:
    """One that is open."""

    def __init__(self) -> None:
        self.receivers = Receivers(SystemClock())
        self.servicer = OutputServicer(self.receivers)
        self.server = RpcServer(is_public=True, asks_for_keys=False)

    async def open(self) -> None:
        descriptor = worker_pb2.DESCRIPTOR.services_by_name["OutputService"]
        self.server.add(descriptor, worker_pb2_grpc.add_OutputServiceServicer_to_server, self.servicer)
        self.server.before_stop(self.receivers.disconnect_all)
        await self.server.start("127.0.0.1", 0)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    port = Port()
    await port.open()
    yield port
    await port.server.stop(0)


@pytest.fixture
async def channel(port: Port) -> AsyncIterator[aio.Channel]:
    async with connect(port.server.address) as channel:
        yield channel


def call(channel: aio.Channel) -> Any:
    return worker_pb2_grpc.OutputServiceStub(channel).ReceiveOutput(timeout=DEADLINE_S)


async def code(stream: Any) -> grpc.StatusCode:
    """The status with which a call ends, which has no answer."""
    with pytest.raises(aio.AioRpcError) as caught:
        await anext(aiter(stream))
    return caught.value.code()


@pytest.mark.parametrize("ticket_bytes", [STRANGER_MESSAGE_BYTES, 8 << 20])
async def test_a_ticket_that_is_too_large_is_not_read(channel: aio.Channel, ticket_bytes: int) -> None:
    stream = call(channel)
    with suppress(aio.AioRpcError, asyncio.InvalidStateError):  # the server has ended the call before it was written
        await stream.write(worker_pb2.ReceiveOutputRequest(ticket=b"x" * ticket_bytes))
    assert await code(stream) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def receive(port: Port, channel: aio.Channel, number: int = 0) -> Any:
    """A receiver's stream, once it is connected."""
    key = ReceiverKey("", number.to_bytes(16))
    stream = call(channel)
    await stream.write(worker_pb2.ReceiveOutputRequest(ticket=port.receivers.invite(key)))
    assert (await anext(aiter(stream))).receiver == key.id
    return stream


async def test_nothing_else_is_served_to_strangers(channel: aio.Channel) -> None:
    stub_of: Any = reflection_pb2_grpc.ServerReflectionStub  # its type knows synchronous channels only
    asked = stub_of(channel).ServerReflectionInfo(timeout=DEADLINE_S)  # nothing is written: it may have been refused by then
    assert await code(asked) is grpc.StatusCode.UNIMPLEMENTED
    health: Any = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert await code(watch) is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_that_show_no_ticket_are_so_many_at_most(
    port: Port, channel: aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 9)
    waiting = [call(channel) for _ in range(20)]
    codes = [asyncio.create_task(code(stream)) for stream in waiting]
    await eventually(lambda: sum(each.done() for each in codes) == 12, DEADLINE_S)  # one machine alone has 8/9
    assert {each.result() for each in codes if each.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    for stream in waiting:
        stream.cancel()
    await asyncio.gather(*codes, return_exceptions=True)
    await receive(port, channel)  # their places are free again


async def test_one_connection_has_so_many_streams_at_most(port: Port, channel: aio.Channel) -> None:
    streams = [await receive(port, channel, number) for number in range(STRANGER_STREAMS)]
    further = asyncio.create_task(receive(port, channel, STRANGER_STREAMS))
    async with connect(port.server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
        await receive(port, other, STRANGER_STREAMS + 1)
    assert not further.done()
    await streams[0].done_writing()
    await further
