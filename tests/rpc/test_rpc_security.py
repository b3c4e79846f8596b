"""API keys and certificates on real servers and channels."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pbkv_cluster.core.errors import ConfigError, InvalidArgument
from pbkv_cluster.core.security.caller import Caller, current_caller
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.rpc.channel import connect, connect_blocking
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.security import Access
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc
from tests.certificates import Authority
from tests.secured import BLUE, CLUSTER_KEY, OPERATOR, RED, secured

SERVICE = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]
DEADLINE_S = 20.0
ANSWERS = "answers"


class Predictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Answers with the caller's tenant."""

    async def Explain(self, request: object, context: object) -> predictor_pb2.ExplainResponse:  # noqa: N802
        raise NotImplementedError

    async def ReportAccess(self, request: object, context: object) -> predictor_pb2.ReportAccessResponse:  # noqa: N802
        raise NotImplementedError

    async def Predict(  # noqa: N802
        self, request: predictor_pb2.PredictRequest, context: object
    ) -> predictor_pb2.ForecastBatch:
        return predictor_pb2.ForecastBatch(agents=[current_caller().tenant])

    async def ReportEvents(  # noqa: N802
        self, request: predictor_pb2.ReportEventsRequest, context: object
    ) -> predictor_pb2.ReportEventsResponse:
        return predictor_pb2.ReportEventsResponse()

    async def WatchForecasts(  # noqa: N802
        self, request: predictor_pb2.WatchForecastsRequest, context: object
    ) -> AsyncIterator[predictor_pb2.ForecastBatch]:
        yield predictor_pb2.ForecastBatch(agents=[current_caller().tenant])

    async def StreamEvents(  # noqa: N802
        self, requests: AsyncIterator[predictor_pb2.ReportEventsRequest], context: object
    ) -> AsyncIterator[predictor_pb2.ReportEventsResponse]:
        async for _ in requests:
            yield predictor_pb2.ReportEventsResponse(accepted=len(current_caller().tenant))


async def serve(*, is_public: bool = False) -> RpcServer:
    server = RpcServer(is_public=is_public)
    methods = ("Predict", "WatchForecasts", "StreamEvents")
    server.add(SERVICE, predictor_pb2_grpc.add_PredictorServiceServicer_to_server, Predictor(), methods)
    await server.start("127.0.0.1", 0)
    return server


async def outcome(channel: aio.Channel, method: str = "Predict") -> str:
    """The tenant that the server has seen, or the status that it answers with."""
    stub: predictor_pb2_grpc.PredictorServiceAsyncStub = predictor_pb2_grpc.PredictorServiceStub(channel)
    try:
        match method:
            case "Predict":
                (tenant,) = (await stub.Predict(predictor_pb2.PredictRequest(), timeout=DEADLINE_S)).agents
                return tenant or ANSWERS
            case "WatchForecasts":
                watch = stub.WatchForecasts(predictor_pb2.WatchForecastsRequest(), timeout=DEADLINE_S)
                return (await anext(aiter(watch))).agents[0] or ANSWERS
            case "StreamEvents":
                events = stub.StreamEvents(iter([predictor_pb2.ReportEventsRequest()]), timeout=DEADLINE_S)
                return {3: "red", 4: "blue", 0: ANSWERS}[(await anext(aiter(events))).accepted]
            case _:
                await stub.ReportEvents(predictor_pb2.ReportEventsRequest(), timeout=DEADLINE_S)
                return ANSWERS
    except aio.AioRpcError as error:
        return error.code().name


@pytest.mark.parametrize("method", ["Predict", "WatchForecasts", "StreamEvents"])
async def test_a_call_is_that_of_its_key(tmp_path: Path, method: str) -> None:
    with secured(tmp_path):
        server = await serve()
        expected = {
            RED: "red",
            BLUE: "blue",
            OPERATOR: ANSWERS,
            CLUSTER_KEY: ANSWERS,
            "": "UNAUTHENTICATED",
            "x" * 30: "UNAUTHENTICATED",
        }
        for key, result in expected.items():
            async with connect(server.address, access=Access(key)) as channel:
                assert await outcome(channel, method) == result
        async with connect(server.address) as channel:
            assert await outcome(channel, method) == ANSWERS, "members show the cluster key"
        await server.stop(0)


async def test_only_operators_call_what_is_not_for_tenants(tmp_path: Path) -> None:
    with secured(tmp_path):
        server = await serve()
        for key, result in {RED: "PERMISSION_DENIED", OPERATOR: ANSWERS, "": "UNAUTHENTICATED"}.items():
            async with connect(server.address, access=Access(key)) as channel:
                assert await outcome(channel, "ReportEvents") == result
        await server.stop(0)


async def test_health_needs_no_key_and_reflection_does(tmp_path: Path) -> None:
    with secured(tmp_path):
        server = await serve()
        async with aio.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            health = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            listing: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            with pytest.raises(aio.AioRpcError) as caught:
                async for _ in listing.ServerReflectionInfo(asked, timeout=DEADLINE_S):
                    pass
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await server.stop(0)


async def test_a_caller_is_known_only_to_its_own_call(tmp_path: Path) -> None:
    with secured(tmp_path):
        server = await serve()
        async with connect(server.address, access=Access(RED)) as channel:
            assert await outcome(channel) == "red"
        assert current_caller() == Caller()
        await server.stop(0)


async def test_metadata_of_a_call_goes_with_the_key(tmp_path: Path) -> None:
    with secured(tmp_path):
        server = await serve()
        async with connect(server.address, access=Access(RED)) as channel:
            stub: predictor_pb2_grpc.PredictorServiceAsyncStub = predictor_pb2_grpc.PredictorServiceStub(channel)
            answer = await stub.Predict(predictor_pb2.PredictRequest(), metadata=(("traceparent", "00"),), timeout=DEADLINE_S)
            assert list(answer.agents) == ["red"]
        await server.stop(0)


def test_tls_must_be_whole(tmp_path: Path) -> None:
    one, two = Authority(tmp_path).sign("one"), Authority(tmp_path, "other").sign("two")
    with (
        pytest.raises(ConfigError, match=r"security\.tls_certificate, security\.tls_key"),
        secured(tmp_path, tls_certificate=one.certificate, tls_key=two.key),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"security\.tls_ca"),
        secured(tmp_path, tls_certificate=one.certificate, tls_key=one.key, tls_ca=one.key),
    ):
        pass
    with pytest.raises(InvalidArgument, match="tls_ca"):
        Tls.of_client(one.key)
    assert Tls.of_client("system") == Tls()
    assert Tls.of_client("") is None


async def test_members_know_each_other_by_certificate(tmp_path: Path) -> None:
    own, stranger = Authority(tmp_path).sign("member"), Authority(tmp_path, "other").sign("stranger")
    with secured(tmp_path, tls_certificate=own.certificate, tls_key=own.key, tls_ca=own.ca):
        server, public = await serve(), await serve(is_public=True)
        cases = {
            "a member": (Access(CLUSTER_KEY, Tls(own.certificate, own.key, own.ca)), ANSWERS, ANSWERS),
            "a client": (Access(RED, Tls(ca=own.ca)), "UNAVAILABLE", "red"),
            "one with a certificate of another authority": (
                Access(CLUSTER_KEY, Tls(stranger.certificate, stranger.key, own.ca)),
                "UNAVAILABLE",
                ANSWERS,
            ),
            "one that trusts another authority": (Access(RED, Tls(ca=stranger.ca)), "UNAVAILABLE", "UNAVAILABLE"),
            "one without TLS": (Access(CLUSTER_KEY), "UNAVAILABLE", "UNAVAILABLE"),
        }
        for who, (access, of_member, of_public) in cases.items():
            async with connect(server.address, access=access) as channel:
                assert await outcome(channel) == of_member, who
            async with connect(public.address, access=access) as channel:
                assert await outcome(channel) == of_public, who
        async with connect(server.address) as channel:
            assert await outcome(channel) == ANSWERS, "this process is a member"
        await server.stop(0)
        await public.stop(0)


async def test_a_name_may_stand_for_the_address(tmp_path: Path) -> None:
    own = Authority(tmp_path).sign("member", "DNS:pbkv.internal")
    settings = {"tls_certificate": own.certificate, "tls_key": own.key, "tls_ca": own.ca}
    with secured(tmp_path, **settings):
        server = await serve()
        async with connect(server.address) as channel:
            assert await outcome(channel) == "UNAVAILABLE"
    with secured(tmp_path, **settings, tls_name="pbkv.internal"):
        async with connect(server.address) as channel:
            assert await outcome(channel) == ANSWERS
        await server.stop(0)


async def test_a_server_that_takes_the_connection_is_not_said_to_be_none(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    named, elsewhere, stranger = authority.sign("named"), authority.sign("elsewhere", "DNS:b"), Authority(tmp_path, "other")

    async def problem(address: str, access: Access) -> str:
        async with connect(address, access=access) as channel:
            stub: predictor_pb2_grpc.PredictorServiceAsyncStub = predictor_pb2_grpc.PredictorServiceStub(channel)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.Predict(predictor_pb2.PredictRequest(), timeout=DEADLINE_S)
        return str(from_rpc(caught.value))

    trusting = Access(RED, Tls(ca=authority.ca))
    plain = await serve()
    assert (await problem(plain.address, trusting)).startswith(f"cannot connect to {plain.address}: ")
    await plain.stop(0)
    assert (await problem(plain.address, trusting)).startswith(f"nobody answers at {plain.address}: ")
    cases = ((named, Access(RED, Tls(ca=stranger.ca))), (elsewhere, trusting), (named, Access(RED)))
    for own, access in cases:
        with secured(tmp_path, tls_certificate=own.certificate, tls_key=own.key, tls_ca=own.ca):
            server = await serve(is_public=True)
            assert (await problem(server.address, access)).startswith(f"cannot connect to {server.address}: "), own
            await server.stop(0)


async def test_a_channel_without_asyncio_shows_the_same(tmp_path: Path) -> None:
    import asyncio

    own = Authority(tmp_path).sign("member")
    with secured(tmp_path, tls_certificate=own.certificate, tls_key=own.key, tls_ca=own.ca):
        server = await serve(is_public=True)

        def call(access: Access) -> list[str]:
            with connect_blocking(server.address, access=access) as channel:
                stub = predictor_pb2_grpc.PredictorServiceStub(channel)
                return list(stub.Predict(predictor_pb2.PredictRequest(), timeout=DEADLINE_S).agents)

        assert await asyncio.to_thread(call, Access(RED, Tls(ca=own.ca))) == ["red"]
        await server.stop(0)
