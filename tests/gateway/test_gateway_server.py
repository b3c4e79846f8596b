"""The gateway's background tasks: a failure ends the gateway, a full feed drops the oldest events."""

import asyncio

import pytest

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.server import GatewayServer
from pbkv_cluster.store.cluster_index import BlockIndex, Directory
from pbkv_cluster.store.cluster_index import connect as connect_redis
from tests.gateway.rig import codec, running, shared_redis, until


async def test_a_full_feed_drops_the_oldest_events_and_counts_them() -> None:
    async with running() as rig:
        decisions = Decisions()
        feed = EventFeed(rig.directory, decisions, capacity=3)
        background = Background()
        background.start(feed.run(), "events")
        for sequence in range(10):
            feed.put(WorkflowEvent(EventKind.STEP_STARTED, "w", sequence, 0.0))
        predictor = await rig.add_predictor()
        await until(lambda: len(predictor.of("w")) == 3, "the events that were kept arrive")
        assert [event.sequence for event in predictor.of("w")] == [7, 8, 9]
        assert decisions[Reason.EVENT_DROPPED] == 7
        await background.stop()


async def test_a_gateway_raises_what_failed_and_still_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(pool: WorkerPool) -> None:
        raise ValueError("broken")

    closed = asyncio.Event()

    async def close(pool: WorkerPool) -> None:
        closed.set()

    monkeypatch.setattr(WorkerPool, "run", fail)
    monkeypatch.setattr(WorkerPool, "close", close)
    redis = connect_redis(shared_redis())
    directory, index = Directory(redis, "failing", 60.0), BlockIndex(redis, "failing", 60.0)
    gateway = GatewayServer(Config(), directory, index, codec(), ManualClock())
    await gateway.start("127.0.0.1", 0)
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(gateway.wait(), 20)
    with pytest.raises(ExceptionGroup, match="background tasks failed"):
        await gateway.stop()
    assert closed.is_set()
    await redis.aclose()
