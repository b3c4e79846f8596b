"""The receiver as a member: it finds the predictor in the directory."""

import sys
from collections.abc import AsyncIterator
from dataclasses import replace

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
FLAGS = {"otel.port": 0, "otel.http_port": -1, "otel.reorder_s": 0.1}


@pytest.fixture
async def context() -> AsyncIterator[MemberContext]:
    redis = RedisServer.resolve("", host=HOST)
    yield MemberContext(load(flags={**FLAGS, "redis.url": redis.url}).config, redis.url, HOST, "node")
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


async def test_what_is_not_understood_is_told_to_the_directory(context: MemberContext) -> None:
    redis = connect(context.redis_url)
    directory = Directory(redis, context.config.cluster.name, 60.0)
    member = OtelMember(replace(context, config=load(flags={**FLAGS, "redis.lease_s": 0.3}).config))
    try:
        address = await member.start()
        assert await directory.problems() == []
        await export(address, otlp(1, 1, 2, "somersault", parent=9, agent_name="a"))

        async def told() -> bool:
            return {entry.member: entry.reasons.get("operation_unknown") for entry in await directory.problems()} == {"otel": 1}

        await eventually(told, 20)
    finally:
        await member.stop()
        assert await directory.problems() == []
        await redis.aclose()


async def test_a_missing_package_is_a_clear_error(context: MemberContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pbkv_cluster.integrations.otel.receiver", None)
    member = OtelMember(context)
    with pytest.raises(StartupError, match=r"pip install '.*\[otel\]'"):
        await member.start()
    await member.stop()
