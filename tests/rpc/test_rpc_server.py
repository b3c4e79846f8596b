"""A real server and a real channel: errors, health, reflection, ports, message sizes, cancelling."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pbkv_cluster.core import errors
from pbkv_cluster.rpc.channel import CHANNEL_OPTIONS, connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.http_server import HttpServer
from pbkv_cluster.rpc.server import SERVER_OPTIONS, RpcServer
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc, worker_pb2, worker_pb2_grpc

SERVICE = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]
DEADLINE_S = 20.0


class Predictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Behaves as the test sets it up."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.abort: grpc.StatusCode | None = None
        self.endless = False
        self.refuses_at_once = False
        self.flood = False
        self.waiting = asyncio.Event()  # a stream waits for ever
        self.released = asyncio.Event()

    async def ReportAccess(  # noqa: N802
        self, request: predictor_pb2.ReportAccessRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ReportAccessResponse:
        raise NotImplementedError

    async def Explain(  # noqa: N802
        self, request: predictor_pb2.ExplainRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ExplainResponse:
        raise NotImplementedError

    async def Predict(  # noqa: N802
        self, request: predictor_pb2.PredictRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ForecastBatch:
        if self.abort is not None:
            await context.abort(self.abort, "on purpose")
        if self.error is not None:
            raise self.error
        return predictor_pb2.ForecastBatch(agents=request.workflow_ids)

    async def WatchForecasts(  # noqa: N802
        self, request: predictor_pb2.WatchForecastsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[predictor_pb2.ForecastBatch]:
        try:
            if self.refuses_at_once and self.error is not None:
                raise self.error
            yield predictor_pb2.ForecastBatch(agents=[request.subscriber])
            if self.abort is not None:
                await context.abort(self.abort, "on purpose")
            if self.error is not None:
                raise self.error
            while self.flood:  # more than an unread stream buffers: the server waits in the first write
                self.waiting.set()
                yield predictor_pb2.ForecastBatch(agents=["x" * (32 << 20)])
            if self.endless:
                self.waiting.set()
                await asyncio.Event().wait()
        finally:
            self.released.set()

    async def ReportEvents(  # noqa: N802
        self, request: predictor_pb2.ReportEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ReportEventsResponse:
        return predictor_pb2.ReportEventsResponse(accepted=len(request.events))

    async def StreamEvents(  # noqa: N802
        self, requests: AsyncIterator[predictor_pb2.ReportEventsRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[predictor_pb2.ReportEventsResponse]:
        async for request in requests:
            yield predictor_pb2.ReportEventsResponse(accepted=len(request.events))
            if self.error is not None:
                raise self.error


@pytest.fixture
def predictor() -> Predictor:
    return Predictor()


@pytest.fixture
async def server(predictor: Predictor) -> AsyncIterator[RpcServer]:
    server = RpcServer()
    server.add(SERVICE, predictor_pb2_grpc.add_PredictorServiceServicer_to_server, predictor)
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(server: RpcServer) -> AsyncIterator[aio.Channel]:
    async with connect(server.address) as channel:
        yield channel


async def predict(channel: aio.Channel, *workflows: str) -> predictor_pb2.ForecastBatch:
    request = predictor_pb2.PredictRequest(workflow_ids=workflows)
    return await predictor_pb2_grpc.PredictorServiceStub(channel).Predict(request, timeout=DEADLINE_S)


async def watch(channel: aio.Channel) -> list[predictor_pb2.ForecastBatch]:
    """All messages of a stream. The first is checked here: an error must not swallow the messages before it."""
    request = predictor_pb2.WatchForecastsRequest(subscriber="me")
    call = predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(request, timeout=DEADLINE_S)
    stream = aiter(call)
    first = await anext(stream)
    assert first.agents == ["me"]
    return [first] + [batch async for batch in stream]


async def stream(channel: aio.Channel) -> None:
    """Both sides stream; as above."""
    call = predictor_pb2_grpc.PredictorServiceStub(channel).StreamEvents(timeout=DEADLINE_S)
    await call.write(predictor_pb2.ReportEventsRequest(events=[predictor_pb2.WorkflowEvent()]))
    answers = aiter(call)
    assert (await anext(answers)).accepted == 1
    await anext(answers)


MAPPED = [
    (errors.InvalidArgument("prompt.text", "too: long"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.PromptTooLong("prompt.text", "9 tokens: too many"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.LimitExceeded("too many steps", "limits.tenant_steps", 2.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.TryAgain("it moves"), grpc.StatusCode.UNAVAILABLE),
    (errors.NotFound("no workflow 'w'"), grpc.StatusCode.NOT_FOUND),
    (errors.FailedPrecondition("not set up"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ResourceExhausted("queue is full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable("no worker"), grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
]


@pytest.mark.parametrize("call", [predict, watch, stream])
@pytest.mark.parametrize(("error", "status"), MAPPED)
async def test_an_error_arrives_as_it_was_raised(
    predictor: Predictor,
    channel: aio.Channel,
    caplog: pytest.LogCaptureFixture,
    call: Any,
    error: errors.PbkvError,
    status: grpc.StatusCode,
) -> None:
    predictor.error = error
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel)
    assert caught.value.code() == status
    received = from_rpc(caught.value)
    assert type(received) is type(error)
    assert str(received) == str(error)
    if isinstance(error, errors.InvalidArgument):
        assert isinstance(received, errors.InvalidArgument)
        assert received.field == error.field
    if isinstance(error, errors.LimitExceeded):
        assert isinstance(received, errors.LimitExceeded)
        assert (received.limit, received.retry_after_s) == (error.limit, error.retry_after_s)
    assert caplog.records == []


@pytest.mark.parametrize("call", [predict, watch, stream])
@pytest.mark.parametrize("letter", ["x", "ä"])
async def test_an_error_that_quotes_much_of_a_request_arrives_as_itself(
    predictor: Predictor, channel: aio.Channel, call: Any, letter: str
) -> None:
    predictor.error = errors.NotFound(f"no workflow '{letter * 60_000}'")
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel)
    received = from_rpc(caught.value)
    assert type(received) is errors.NotFound
    assert str(received).startswith(f"no workflow '{letter * 100}")
    assert str(received).endswith(f"{letter}…")


async def test_a_subclass_has_its_parents_status(predictor: Predictor, channel: aio.Channel) -> None:
    class Gone(errors.NotFound):
        pass

    predictor.error = Gone("it was here")
    with pytest.raises(aio.AioRpcError) as caught:
        await predict(channel)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("call", [predict, watch])
@pytest.mark.parametrize("error", [ZeroDivisionError("boom"), errors.ConfigError("boom"), errors.PbkvError("boom")])
async def test_a_defect_is_internal_and_logged_with_its_trace(
    predictor: Predictor, channel: aio.Channel, caplog: pytest.LogCaptureFixture, call: Any, error: Exception
) -> None:
    predictor.error = error
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert caught.value.details() == f"{type(error).__name__}: boom"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "pbkv_cluster.rpc.errors"
    assert "/pbkv.v1.PredictorService/" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    received = from_rpc(caught.value)
    assert type(received) is errors.PbkvError
    assert "INTERNAL" in str(received)


@pytest.mark.parametrize("call", [predict, watch])
async def test_a_service_may_abort_on_its_own(
    predictor: Predictor, channel: aio.Channel, caplog: pytest.LogCaptureFixture, call: Any
) -> None:
    predictor.abort = grpc.StatusCode.DATA_LOSS
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "on purpose")
    assert caplog.records == []


async def call_raw(channel: Any, method: str, data: bytes) -> None:
    """Sends bytes that need not be a message to a method of any kind."""
    path = f"/pbkv.v1.PredictorService/{method}"
    match method:
        case "Predict":
            await channel.unary_unary(path)(data, timeout=DEADLINE_S)
        case "WatchForecasts":
            await anext(aiter(channel.unary_stream(path)(data, timeout=DEADLINE_S)))
        case _:
            call = channel.stream_stream(path)(timeout=DEADLINE_S)
            await call.write(data)
            await anext(aiter(call))


@pytest.mark.parametrize("method", ["Predict", "WatchForecasts", "StreamEvents"])
@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x02\xff\xff"], ids=["no message", "text that is not UTF-8"])
async def test_a_request_that_cannot_be_decoded_is_an_invalid_argument(
    channel: aio.Channel, caplog: pytest.LogCaptureFixture, method: str, data: bytes
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await call_raw(channel, method, data)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    received = from_rpc(caught.value)
    assert isinstance(received, errors.InvalidArgument)
    assert received.field == "request"
    assert caplog.records == []
    assert (await predict(channel, "w")).agents == ["w"]


@pytest.mark.parametrize("method", [predict, watch])
async def test_every_call_of_a_flood_is_refused_for_a_reason(predictor: Predictor, channel: aio.Channel, method: Any) -> None:
    """gRPC itself drops calls at random that it has to queue, which looks as if the client had cancelled them."""
    predictor.error = errors.ResourceExhausted("the queue is full")
    predictor.refuses_at_once = True
    results = await asyncio.gather(*(method(channel) for _ in range(2500)), return_exceptions=True)
    assert Counter(each.code() for each in results if isinstance(each, aio.AioRpcError)) == {
        grpc.StatusCode.RESOURCE_EXHAUSTED: 2500
    }


def test_grpc_knows_every_option() -> None:
    """It ignores those that it does not know."""
    (library,) = Path(grpc.__file__).parent.glob("_cython/cygrpc*.so")
    known = library.read_bytes()
    assert [name for name, _ in [*SERVER_OPTIONS, *CHANNEL_OPTIONS] if name.encode() not in known] == []


async def test_server_and_channel_survive_an_error(predictor: Predictor, channel: aio.Channel) -> None:
    predictor.error = RuntimeError("once")
    with pytest.raises(aio.AioRpcError):
        await predict(channel)
    predictor.error = None
    assert (await predict(channel, "w")).agents == ["w"]
    assert len(await watch(channel)) == 1


async def test_a_missing_service_is_unimplemented(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await worker_pb2_grpc.WorkerServiceStub(channel).GetWorkerStatus(
            worker_pb2.GetWorkerStatusRequest(), timeout=DEADLINE_S
        )
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_missing_server_is_unavailable(server: RpcServer) -> None:
    await server.stop(0)
    async with connect(server.address) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await predict(channel)
    received = from_rpc(caught.value)
    assert isinstance(received, errors.Unavailable)
    assert str(received) == f"nobody answers at {server.address}: Connection refused"


async def test_a_missing_ipv6_server_is_named_as_it_was_called() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
        address = f"[::1]:{free.getsockname()[1]}"
    async with connect(address) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await predict(channel)
    assert str(from_rpc(caught.value)).startswith(f"nobody answers at {address}: ")


async def test_a_server_of_http_1_is_told_apart_from_none() -> None:
    server = HttpServer({})
    address = await server.start("127.0.0.1", 0)
    try:
        async with connect(address) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await predict(channel)
    finally:
        await server.stop()
    assert str(from_rpc(caught.value)) == f"cannot connect to {address}: it speaks HTTP/1.1, not gRPC"


@pytest.mark.parametrize("name", ["", "pbkv.v1.PredictorService"])
async def test_health_serves_until_the_stop(server: RpcServer, channel: aio.Channel, name: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its type has no methods
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await stub.Check(request, timeout=DEADLINE_S)).status == health_pb2.HealthCheckResponse.SERVING

    watching = aiter(stub.Watch(request, timeout=DEADLINE_S))
    assert (await anext(watching)).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(server.stop(1.0))
    assert (await anext(watching)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await stopping


async def test_health_knows_no_other_service(channel: aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(channel: aio.Channel) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub_of: Any = reflection_pb2_grpc.ServerReflectionStub  # its type knows synchronous channels only
    stub = stub_of(channel)
    answers = [answer async for answer in stub.ServerReflectionInfo(ask(), timeout=DEADLINE_S)]
    assert {service.name for service in answers[0].list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "pbkv.v1.PredictorService",
    }


async def test_a_port_in_use_is_reported_at_the_start(server: RpcServer) -> None:
    port = int(server.address.rpartition(":")[2])
    second = RpcServer()
    with pytest.raises(errors.StartupError, match=rf"cannot listen on 127\.0\.0\.1:{port}: is the port in use\?"):
        await second.start("127.0.0.1", port)
    await second.stop(0)


async def test_an_address_of_another_machine_is_reported_at_the_start() -> None:
    server = RpcServer()
    with pytest.raises(errors.StartupError, match=r"cannot listen on 203\.0\.113\.1:0"):
        await server.start("203.0.113.1", 0)
    await server.stop(0)


async def test_a_port_is_free_again_after_the_stop(predictor: Predictor) -> None:
    first, second = RpcServer(), RpcServer()
    port = int((await first.start("127.0.0.1", 0)).rpartition(":")[2])
    await first.stop(0)
    assert await second.start("127.0.0.1", port) == first.address
    await second.stop(0)


@pytest.mark.parametrize("size", [5 << 20, 63 << 20])
async def test_large_messages_pass_both_ways(channel: aio.Channel, size: int) -> None:
    (agent,) = (await predict(channel, "w" * size)).agents
    assert len(agent) == size


async def test_messages_beyond_the_limit_are_refused(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await predict(channel, "w" * (65 << 20))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("waits_in", ["endless", "flood"])
async def test_cancelling_a_stream_releases_what_it_held(predictor: Predictor, channel: aio.Channel, waits_in: str) -> None:
    setattr(predictor, waits_in, True)
    call = predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(predictor_pb2.WatchForecastsRequest(subscriber="me"))
    await anext(aiter(call))
    await asyncio.wait_for(predictor.waiting.wait(), DEADLINE_S)
    assert not predictor.released.is_set()
    call.cancel()
    await asyncio.wait_for(predictor.released.wait(), DEADLINE_S)


async def test_stopping_ends_calls_that_outlast_the_grace(
    predictor: Predictor, server: RpcServer, channel: aio.Channel
) -> None:
    predictor.endless = True
    stream = aiter(predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(predictor_pb2.WatchForecastsRequest()))
    await anext(stream)
    await asyncio.wait_for(server.stop(0.1), DEADLINE_S)
    await asyncio.wait_for(predictor.released.wait(), DEADLINE_S)
    with pytest.raises(aio.AioRpcError):
        await anext(stream)
    await asyncio.wait_for(server.wait(), DEADLINE_S)


async def test_an_ipv6_host_serves_and_is_connected_to(predictor: Predictor) -> None:
    server = RpcServer()
    server.add(SERVICE, predictor_pb2_grpc.add_PredictorServiceServicer_to_server, predictor)
    address = await server.start("::1", 0)
    assert address.startswith("[::1]:")
    async with connect(address) as channel:
        assert (await predict(channel, "w")).agents == ["w"]
    await server.stop(0)


async def test_a_port_beyond_all_ports_is_refused_by_name() -> None:
    """gRPC would take 99999 for 34463."""
    with pytest.raises(errors.InvalidArgument, match=r"^endpoint: the port must be a number from 1 to 65535"):
        connect("127.0.0.1:99999", "endpoint")
    server = RpcServer()
    with pytest.raises(errors.StartupError, match=r"cannot listen on 127\.0\.0\.1:99999: a port is from 0 to 65535"):
        await server.start("127.0.0.1", 99999)
    await server.stop(0)
