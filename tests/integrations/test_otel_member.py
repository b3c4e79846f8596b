"""The receiver as a member: it finds the predictor in the directory."""

import sys
from collections.abc import AsyncIterator

import pytest

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.core.config import PredictorConfig, load
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.integrations.otel.member import OtelMember
from pbkv_cluster.integrations.predictor import find_predictor
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.store.cluster_index import Directory, RedisServer, ServiceEntry, connect
from tests.integrations.otel_spans import export, otlp
from tests.polling import eventually

HOST = "127.0.0.1"


@pytest.fixture
async def context() -> AsyncIterator[MemberContext]:
    redis = RedisServer.resolve("", host=HOST)
    flags = {"redis.url": redis.url, "otel.port": 0, "otel.http_port": -1, "otel.reorder_s": 0.1}
    yield MemberContext(load(flags=flags).config, redis.url, HOST, "node")
    redis.stop()


async def test_events_reach_the_predictor_of_the_directory(context: MemberContext) -> None:
    predictor = PredictorServer(PredictorConfig())
    redis = connect(context.redis_url)
    directory = Directory(redis, context.config.cluster.name, 60.0)
    await directory.announce_service(ServiceEntry("predictor", await predictor.start(HOST, 0), 1))
    async with find_predictor("", context.config) as found:
        assert await found.service_address("predictor") == predictor.address
    member = OtelMember(context)
    try:
        await export(await member.start(), otlp(1, 1, 2, "chat", parent=9, agent_name="a"))

        async def heard() -> bool:
            return predictor.service.open_workflows == 1

        await eventually(heard, 10)
    finally:
        await member.stop()
        await predictor.stop()
        await redis.aclose()


async def test_a_missing_package_is_a_clear_error(context: MemberContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pbkv_cluster.integrations.otel.receiver", None)
    member = OtelMember(context)
    with pytest.raises(StartupError, match=r"pbkv-cluster\[otel\]"):
        await member.start()
    await member.stop()
