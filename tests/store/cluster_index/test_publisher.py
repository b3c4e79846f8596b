"""The publisher of a worker's blocks on a real Redis, with outages."""

import asyncio
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from threading import Thread

import pytest
import redis
from redis.asyncio import Redis

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import NOWHERE, Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexPublisher, Match, RedisServer, connect
from tests.polling import eventually
from tests.store.cluster_index.helpers import NAMESPACE, kept, port_of, process_id, stored_blocks, worker_entry

GPU, HOST, GONE = Residency(frozenset({Tier.GPU})), Residency(frozenset({Tier.HOST}), 3), NOWHERE
KEYS = block_keys(NAMESPACE, random.Random(5).randbytes(50 * BLOCK_BYTES))
WORKER = worker_entry()
HOLDER = (WORKER.worker_id, WORKER.incarnation)

Blocks = Mapping[bytes, Residency]


class Cluster:
    """An index, and the blocks of the one worker in it."""

    def __init__(self, redis: Redis, ttl_s: float = 60.0) -> None:
        self._redis = redis
        self.directory = Directory(redis, "test", ttl_s)
        self.index = BlockIndex(redis, "test", ttl_s)
        self.blocks: dict[bytes, Residency] = {}

    def publisher(
        self, snapshot: Callable[[], Blocks | Awaitable[Blocks]] | None = None, max_pending: int = 1000
    ) -> IndexPublisher:
        take = snapshot or (lambda: dict(self.blocks))
        return IndexPublisher(self.directory, self.index, WORKER, take, flush_interval_s=0.01, max_pending=max_pending)

    @asynccontextmanager
    async def running(self, max_pending: int = 1000) -> AsyncIterator[IndexPublisher]:
        publisher = self.publisher(max_pending=max_pending)
        await publisher.start()
        try:
            yield publisher
        finally:
            await publisher.stop()

    def hold(self, publisher: IndexPublisher, keys: list[bytes], residency: Residency) -> None:
        for key in keys:
            self.blocks[key] = residency
            publisher.record(key, residency)

    async def announced(self) -> bool:
        """Whether the index agrees with what the worker holds."""
        try:
            held = {key: residency for key, residency in self.blocks.items() if residency.tiers}
            run = next((i for i, key in enumerate(KEYS) if key not in held), len(KEYS))
            gpu = next((i for i, key in enumerate(KEYS) if held.get(key) != GPU), len(KEYS))
            return (
                await self.directory.workers() == [WORKER]
                and await stored_blocks(self._redis, *HOLDER) == len(held)
                and await self.index.match(KEYS, [HOLDER]) == [Match(gpu, run)]
            )
        except Unavailable:
            return False


@pytest.fixture
def cluster(redis: Redis) -> Cluster:
    return Cluster(redis)


async def test_announces_blocks_and_their_changes(cluster: Cluster) -> None:
    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    async with cluster.running() as publisher:
        assert await cluster.announced()
        cluster.hold(publisher, KEYS[10:20], GPU)
        await eventually(cluster.announced)
        cluster.hold(publisher, KEYS[5:20], HOST)
        cluster.hold(publisher, KEYS[15:20], GONE)
        await eventually(cluster.announced)
        assert publisher.announcements == 1


async def test_withdraws_when_stopped(redis: Redis, cluster: Cluster) -> None:
    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    publisher = cluster.publisher()
    await publisher.start()
    with pytest.raises(RuntimeError, match="started already"):
        await publisher.start()
    await publisher.stop()
    await publisher.stop()
    assert await kept(redis) == []


async def test_leaves_its_successor_alone_when_stopped(cluster: Cluster) -> None:
    async with cluster.running():
        successor = worker_entry(incarnation="two")
        await cluster.directory.announce_worker(successor)
    assert await cluster.directory.workers() == [successor]


async def test_changes_come_from_other_threads(cluster: Cluster) -> None:
    async with cluster.running() as publisher:
        threads = [Thread(target=lambda part=part: cluster.hold(publisher, KEYS[part::4], GPU)) for part in range(4)]
        for thread in threads:
            thread.start()
        await eventually(cluster.announced)
        for thread in threads:
            thread.join()
        assert cluster.blocks.keys() == set(KEYS)


async def test_renews_the_worker_and_its_blocks(redis: Redis) -> None:
    cluster = Cluster(redis, ttl_s=1.5)
    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    async with cluster.running():
        (key,) = [each async for each in redis.scan_iter("pbkv:{test}:blocks:*")]
        for name in (key, b"pbkv:{test}:worker:worker-0"):
            await redis.pexpire(name, 50_000)  # longer than the time to live: only a renewal shortens it

            async def renewed(name: bytes = name) -> bool:
                return 0 < await redis.pttl(name) < 10_000

            await eventually(renewed)


@pytest.mark.parametrize("ttl_s", [0.6, 60.0])
async def test_announces_all_again_after_redis_lost_it(redis: Redis, ttl_s: float) -> None:
    cluster = Cluster(redis, ttl_s)
    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    async with cluster.running() as publisher:
        await redis.flushall()
        if ttl_s == 60.0:  # the next change notices, long before a renewal is due
            cluster.hold(publisher, KEYS[10:11], GPU)
        await eventually(cluster.announced)
        assert publisher.outages == 0


async def test_survives_an_outage_of_redis_and_announces_all_again(caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer.start(password="same")
    client = connect(server.url)
    cluster = Cluster(client)
    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    with caplog.at_level(logging.WARNING):
        async with cluster.running() as publisher:
            assert await cluster.announced()
            server.stop()
            cluster.hold(publisher, KEYS[10:30], GPU)
            await eventually(lambda: publisher.outages == 1)
            cluster.hold(publisher, KEYS[20:30], GONE)
            with RedisServer.start(port=port_of(server), password="same"):
                await eventually(cluster.announced)
                cluster.hold(publisher, KEYS[20:40], GPU)
                await eventually(cluster.announced)
                assert publisher.outages == 1
                assert caplog.text.count("cannot reach the index") == 1
                assert caplog.text.count("in the index again") == 1
    assert "cannot withdraw from the index" in caplog.text  # stopped with Redis down
    await client.aclose()


@contextmanager
def read_only(server: RedisServer) -> Iterator[None]:
    """A replica of nobody: it answers, and takes no writes."""
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", "1")
        yield
        admin.replicaof("no", "one")


@contextmanager
def silent(server: RedisServer) -> Iterator[None]:
    """Its process is stopped: it takes connections, and answers nothing."""
    process = process_id(server)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("trouble", [read_only, silent])
async def test_a_redis_that_takes_no_writes_or_does_not_answer_is_an_outage(
    trouble: Callable[[RedisServer], AbstractContextManager[None]],
) -> None:
    """Changes go on meanwhile, and all of them are in the index afterwards."""
    with RedisServer.start(password="same") as server:
        client = connect(server.url, timeout_s=0.2)
        cluster = Cluster(client)
        cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
        async with cluster.running() as publisher:
            assert await cluster.announced()
            with trouble(server):
                cluster.hold(publisher, KEYS[10:30], GPU)
                await eventually(lambda: publisher.outages == 1)
                cluster.hold(publisher, KEYS[20:40], GONE)
            await eventually(cluster.announced)
            assert publisher.outages == 1
        await client.aclose()


async def test_starts_without_redis() -> None:
    with RedisServer.start(password="same") as server:
        url, port = server.url, port_of(server)
    client = connect(url)
    cluster = Cluster(client)
    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    async with cluster.running() as publisher:
        assert publisher.outages == 1
        with RedisServer.start(port=port, password="same"):
            await eventually(cluster.announced)
    await client.aclose()


async def test_more_changes_than_fit_become_a_snapshot(cluster: Cluster) -> None:
    async with cluster.running(max_pending=8) as publisher:
        cluster.hold(publisher, KEYS, GPU)
        cluster.hold(publisher, KEYS[30:], GONE)
        assert publisher.overflows > 0
        await eventually(cluster.announced)
        assert publisher.announcements > 1


async def test_changes_during_a_snapshot_are_not_lost(cluster: Cluster) -> None:
    taken, go_on = asyncio.Event(), asyncio.Event()

    async def snapshot() -> Blocks:
        blocks = dict(cluster.blocks)
        taken.set()
        await go_on.wait()
        return blocks

    cluster.blocks = dict.fromkeys(KEYS[:10], GPU)
    publisher = cluster.publisher(snapshot)
    starting = asyncio.create_task(publisher.start())
    await taken.wait()
    cluster.hold(publisher, KEYS[10:20], GPU)
    cluster.hold(publisher, KEYS[18:20], GONE)
    go_on.set()
    await starting
    await eventually(cluster.announced)
    assert publisher.announcements == 1
    await publisher.stop()


async def test_a_busy_engine_is_asked_again_for_a_snapshot(cluster: Cluster) -> None:
    answers: list[Blocks | None] = [None, None, dict.fromkeys(KEYS[:3], GPU)]

    def snapshot() -> Blocks:
        answer = answers.pop(0)
        if answer is None:
            raise Unavailable("the engine is busy")
        return answer

    cluster.blocks = dict.fromkeys(KEYS[:3], GPU)
    publisher = cluster.publisher(snapshot)
    await publisher.start()
    await eventually(cluster.announced)
    await publisher.stop()


async def test_a_defect_is_logged_and_raised_by_stop(redis: Redis, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    snapshots: list[Blocks] = [{}]
    publisher = cluster.publisher(lambda: snapshots.pop())
    await publisher.start()
    await redis.flushall()
    publisher.record(KEYS[0], GPU)
    await eventually(lambda: "its publisher failed" in caplog.text)
    with pytest.raises(IndexError):
        await publisher.stop()
    assert await kept(redis) == []


async def test_keys_of_a_wrong_length_are_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        cluster.publisher().record(b"short", GPU)
