"""The mirror of the index on a real Redis: equal to it after whatever happens to messages, workers and the server."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.clock import Clock, ManualClock, SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import SHARED, Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_map import BlockMap, Match, WorkerKey
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexMirror, RedisServer, connect
from pbkv_cluster.store.cluster_index.change_stream import Change, ChangeStream, stream_key
from tests.polling import eventually
from tests.store.cluster_index.helpers import NAMESPACE, port_of, worker_entry

KEYS = block_keys(NAMESPACE, random.Random(5).randbytes(40 * BLOCK_BYTES))
GPU = Residency(frozenset({Tier.GPU})).pack()
HOST = Residency(frozenset({Tier.HOST}), 7).pack()
W0, W1 = ("worker-0", "one"), ("worker-1", "one")


class Cluster:
    """An index with workers in it, and what each has announced."""

    def __init__(self, redis: Redis, name: str = "test", ttl_s: float = 60.0) -> None:
        self.redis = redis
        self.directory = Directory(redis, name, ttl_s)
        self.index = BlockIndex(redis, name, ttl_s)
        self.blocks: dict[WorkerKey, dict[bytes, int]] = {}

    async def announce(self, worker: WorkerKey, blocks: Mapping[bytes, int], node: str = "node-0") -> None:
        await self.directory.announce_worker(replace(worker_entry(*worker), node_id=node))
        await self.index.announce(*worker, blocks)
        for other in [each for each in self.blocks if each[0] == worker[0]]:
            del self.blocks[other]
        self.blocks[worker] = dict(blocks)

    async def publish(self, worker: WorkerKey, changes: Mapping[bytes, int]) -> None:
        assert await self.index.publish(*worker, changes)
        self.blocks[worker].update(changes)
        self.blocks[worker] = {key: packed for key, packed in self.blocks[worker].items() if packed}

    async def renew(self) -> None:
        for worker, blocks in list(self.blocks.items()):
            if not await self.index.renew(*worker):
                await self.announce(worker, blocks)

    def equals(self, mirror: IndexMirror) -> bool:
        held = {worker: dict(mirror.blocks.blocks(worker)) for worker in mirror.blocks.workers}
        return mirror.is_current and held == self.blocks

    @asynccontextmanager
    async def mirrored(self, blocks: BlockMap | None = None, clock: Clock | None = None) -> AsyncIterator[IndexMirror]:
        mirror = IndexMirror(self.index, self.directory, clock or SystemClock(), blocks)
        mirror.start()
        try:
            yield mirror
        finally:
            await mirror.stop()


@pytest.fixture
def cluster(redis: Redis) -> Cluster:
    return Cluster(redis)


async def test_begins_with_what_is_there_and_follows_it(cluster: Cluster) -> None:
    await cluster.announce(W0, dict.fromkeys(KEYS[:30], GPU))
    async with cluster.mirrored() as mirror:
        await eventually(lambda: cluster.equals(mirror))
        await cluster.publish(W0, {KEYS[30]: GPU, KEYS[29]: HOST, KEYS[28]: 0})
        await cluster.announce(W1, dict.fromkeys(KEYS[:5], HOST))
        await eventually(lambda: cluster.equals(mirror))
        await cluster.index.drop(*W0)
        del cluster.blocks[W0]
        await eventually(lambda: cluster.equals(mirror))
        assert mirror.repairs == 0


async def test_entries_of_others_are_skipped(cluster: Cluster) -> None:
    async with cluster.mirrored() as mirror:
        await eventually(lambda: mirror.is_current)
        await cluster.announce(W0, {})
        for fields in ({"k": "c"}, {"k": "c", "w": b"\xff:1", "n": "1", "c": ""}, {"k": "c", "w": "a:b", "n": "x", "c": ""}):
            await cluster.redis.xadd(stream_key("test"), fields)  # type: ignore[arg-type]
        await cluster.publish(W0, {KEYS[0]: GPU})
        await eventually(lambda: cluster.equals(mirror) and mirror.stream.malformed == 3)


async def test_matches_as_redis_does_before_and_after_it_has_a_copy(cluster: Cluster) -> None:
    await cluster.announce(W0, dict.fromkeys(KEYS[:9], GPU) | {KEYS[9]: HOST})
    mirror = IndexMirror(cluster.index, cluster.directory, SystemClock())
    cold = await mirror.match(KEYS, [W0, W1])
    mirror.start()
    await eventually(lambda: mirror.is_current)
    await cluster.redis.flushall()
    assert await mirror.match(KEYS, [W0, W1]) == cold == [Match(9, 10), Match(0, 0)]
    await mirror.stop()


async def test_a_restarted_worker_replaces_its_predecessor(cluster: Cluster) -> None:
    await cluster.announce(W0, dict.fromkeys(KEYS, GPU))
    async with cluster.mirrored() as mirror:
        await eventually(lambda: cluster.equals(mirror))
        await cluster.announce(("worker-0", "two"), dict.fromkeys(KEYS[:3], HOST))
        await eventually(lambda: cluster.equals(mirror))


async def test_a_lost_message_is_noticed_by_the_next_change_or_renewal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.announce(W0, dict.fromkeys(KEYS[:3], GPU))
    lost = False
    read = ChangeStream.read

    async def lossy(self: ChangeStream, wait_s: float, entries_max: int = 256) -> list[Change]:
        changes = await read(self, wait_s, entries_max)
        return [] if lost else changes

    monkeypatch.setattr(ChangeStream, "read", lossy)
    async with cluster.mirrored() as mirror:
        await eventually(lambda: cluster.equals(mirror))
        for repairs, notice in enumerate((lambda: cluster.publish(W0, {KEYS[9]: GPU}), cluster.renew), 1):
            lost = True
            position = mirror.stream.position
            await cluster.publish(W0, {KEYS[3 + repairs]: HOST})
            await eventually(lambda before=position: mirror.stream.position != before)  # type: ignore[misc]
            lost = False
            assert not cluster.equals(mirror)
            await notice()
            await eventually(lambda: cluster.equals(mirror))
            assert mirror.repairs == repairs


async def test_a_worker_that_is_not_renewed_is_forgotten(redis: Redis) -> None:
    cluster = Cluster(redis, ttl_s=0.3)
    await cluster.announce(W0, dict.fromkeys(KEYS, GPU))
    async with cluster.mirrored() as mirror:
        await eventually(lambda: mirror.is_current)
        await eventually(lambda: not mirror.blocks.workers)


async def test_says_that_it_has_lost_redis_and_catches_up_with_one_that_comes_back_empty() -> None:
    server = RedisServer.start(password="same")
    client = connect(server.url)
    cluster = Cluster(client)
    await cluster.announce(W0, dict.fromkeys(KEYS[:20], GPU))
    async with cluster.mirrored() as mirror:
        await eventually(lambda: cluster.equals(mirror))
        server.stop()
        await eventually(lambda: mirror.has_lost_redis)
        with pytest.raises(Unavailable, match="waits for Redis"):
            await mirror.match(KEYS, [W0])
        with RedisServer.start(port=port_of(server), password="same"):
            await eventually(lambda: mirror.is_current)
            await cluster.announce(W0, dict.fromkeys(KEYS[10:], HOST))
            await eventually(lambda: cluster.equals(mirror))
    await client.aclose()


async def test_a_stream_whose_ids_begin_again_is_read_from_its_start(cluster: Cluster) -> None:
    """As after a fail-over to a server whose clock is behind."""
    await cluster.announce(W0, dict.fromkeys(KEYS[:3], GPU))
    clock = ManualClock()
    async with cluster.mirrored(clock=clock) as mirror:
        await eventually(lambda: cluster.equals(mirror))
        mirror.stream.position = "99999999999999-0"
        await cluster.publish(W0, {KEYS[3]: HOST})
        clock.advance(61.0)  # it wonders why it hears nothing
        await eventually(lambda: cluster.equals(mirror))


async def test_a_mirror_of_what_can_be_read_leaves_out_the_rest(cluster: Cluster) -> None:
    await cluster.announce(W0, dict.fromkeys(KEYS[:5], GPU) | {KEYS[5]: HOST})
    async with cluster.mirrored(BlockMap(SHARED)) as mirror:
        await eventually(lambda: dict(mirror.blocks.blocks(W0)) == {KEYS[5]: HOST})
        await cluster.publish(W0, {KEYS[5]: GPU, KEYS[4]: HOST})
        await eventually(lambda: dict(mirror.blocks.blocks(W0)) == {KEYS[4]: HOST})


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.integers(0, 2),
            st.dictionaries(st.sampled_from(KEYS), st.sampled_from([0, GPU, HOST]), min_size=1),
        ),
        st.tuples(st.just("announce"), st.integers(0, 2), st.dictionaries(st.sampled_from(KEYS), st.sampled_from([GPU, HOST]))),
        st.tuples(st.just("restart"), st.integers(0, 2), st.dictionaries(st.sampled_from(KEYS), st.sampled_from([GPU, HOST]))),
        st.tuples(st.sampled_from(["trim", "flush", "drop", "settle"]), st.integers(0, 2), st.none()),
    ),
    max_size=25,
)


@given(operations=OPERATIONS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_index_after_any_history(
    redis_server: RedisServer, operations: list[tuple[str, int, dict[bytes, int]]]
) -> None:
    asyncio.run(_history(redis_server.url, operations))


async def _history(url: str, operations: list[tuple[str, int, dict[bytes, int]]]) -> None:
    client = connect(url)
    await client.flushall()
    cluster = Cluster(client, "history")
    incarnations = [0, 0, 0]
    async with cluster.mirrored() as mirror:
        for kind, number, blocks in operations:
            if kind == "restart":
                incarnations[number] += 1
            worker = (f"worker-{number}", str(incarnations[number]))
            if kind in ("announce", "restart"):
                await cluster.announce(worker, blocks)
            elif kind == "publish" and worker in cluster.blocks:
                await cluster.publish(worker, blocks)
            elif kind == "drop" and worker in cluster.blocks:
                await cluster.renew()
                await eventually(lambda: cluster.equals(mirror), 10.0)  # else it may read the worker's blocks just now
                await cluster.index.drop(*worker)
                del cluster.blocks[worker]
                # Told at once, or else not before its time to live is over.
                await eventually(lambda gone=worker: gone not in mirror.blocks.workers)  # type: ignore[misc]
            elif kind == "trim":  # messages that the mirror may not have read yet
                await client.xtrim(stream_key("history"), maxlen=0, approximate=False)
            elif kind == "flush":
                await client.flushall()
                await _next_millisecond(client)
                await cluster.renew()
            else:
                await eventually(lambda: mirror.is_current)
        await cluster.renew()
        await eventually(lambda: cluster.equals(mirror), 10.0)
    await client.aclose()


async def _next_millisecond(client: Redis) -> None:
    """A server that has come back empty is later than the one before it, and so are the ids of its stream, by a millisecond."""

    async def now() -> int:
        seconds, microseconds = await client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    first = await now()

    async def later() -> bool:
        return await now() > first

    await eventually(later)
