"""Another Redis server takes over that lacks the latest writes, since replication waits for nobody: the index is made good."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.clock import ManualClock, SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexMirror, IndexPublisher, connect
from tests.polling import eventually, wait_for
from tests.store.cluster_index.helpers import NAMESPACE, worker_entry
from tests.store.redis_connection.proxy import Proxy, proxy_of
from tests.store.redis_connection.servers import Server, is_equal, replicated, serving, watched

GPU = Residency(frozenset({Tier.GPU}))
KEYS = block_keys(NAMESPACE, random.Random(5).randbytes(30 * BLOCK_BYTES))
MANY = dict.fromkeys(block_keys(NAMESPACE, random.Random(6).randbytes(3000 * BLOCK_BYTES)), GPU.pack())
WORKER = worker_entry()
HOLDER = (WORKER.worker_id, WORKER.incarnation)
TTL_S = 600.0  # no renewal is due in a test, unless its clock is moved
FAILOVER_S = 60.0


class Held:
    """What the one worker holds, with the publisher and a mirror of it."""

    def __init__(self, redis: Redis) -> None:
        self.index = BlockIndex(redis, "test", TTL_S)
        directory = Directory(redis, "test", TTL_S)
        self.blocks = dict.fromkeys(KEYS[:10], GPU)
        self.clock = ManualClock()
        self.publisher = IndexPublisher(
            directory, self.index, WORKER, lambda: dict(self.blocks), flush_interval_s=0.01, clock=self.clock
        )
        self.mirror = IndexMirror(self.index, directory, SystemClock())

    def hold(self, keys: list[bytes]) -> None:
        for key in keys:
            self.blocks[key] = GPU
            self.publisher.record(key, GPU)

    async def is_known(self) -> bool:
        """Whether Redis and the mirror say what the worker holds."""
        packed = {key: residency.pack() for key, residency in self.blocks.items()}
        try:
            in_redis = await blocks_in(self.index)
        except Unavailable:
            return False
        return self.mirror.is_current and self.mirror.blocks.blocks(HOLDER) == in_redis == packed

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        await self.publisher.start()
        self.mirror.start()
        try:
            await eventually(self.is_known)
            yield
        finally:
            await self.mirror.stop()
            await self.publisher.stop()


async def blocks_in(index: BlockIndex) -> dict[bytes, int]:
    return {key: packed async for page in index.pages(HOLDER) for key, packed in page.items()}


def promote(replica: Server) -> None:
    """What is written to its primary from now on is lost when that ends."""
    with replica.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("notice", [lambda held: held.hold(KEYS[20:21]), lambda held: held.clock.advance(TTL_S)])
async def test_lost_changes_are_noticed_by_the_next_change_or_renewal(tmp_path: Path, notice: Callable[[Held], None]) -> None:
    with replicated(tmp_path) as (primary, replica):
        async with proxy_of(primary) as proxy:
            client = connect(f"redis://127.0.0.1:{proxy.port}")
            held = Held(client)
            async with held.published():
                await eventually(lambda: is_equal(primary, replica))
                promote(replica)
                held.hold(KEYS[10:20])
                await eventually(held.is_known)
                proxy.switch(replica)
                assert not await held.is_known(), "the replica has all writes"
                notice(held)
                await eventually(held.is_known)
                assert held.publisher.outages == 0, "it was told by an error"
            await client.aclose()


async def test_a_change_that_arrived_without_a_confirmation_is_announced_again(tmp_path: Path) -> None:
    """The mirror has seen it, so what comes next must have a larger number."""
    with serving(tmp_path) as server:
        async with proxy_of(server) as proxy:
            writer = connect(f"redis://127.0.0.1:{proxy.port}", timeout_s=0.2)
            reader = connect(f"redis://{server.address}")
            index = BlockIndex(writer, "test", TTL_S)
            await Directory(writer, "test", TTL_S).announce_worker(WORKER)
            await index.announce(*HOLDER, {})
            assert await index.renew(*HOLDER)  # so that the server knows the script
            mirror = IndexMirror(BlockIndex(reader, "test", TTL_S), Directory(reader, "test", TTL_S), SystemClock())
            mirror.start()
            await eventually(lambda: mirror.is_current)
            proxy.delay_s = 1.0
            with pytest.raises(Unavailable):
                await index.publish(*HOLDER, {KEYS[0]: 1})
            await eventually(lambda: mirror.blocks.blocks(HOLDER) == {KEYS[0]: 1})
            proxy.delay_s = 0.0
            assert not await index.publish(*HOLDER, {KEYS[1]: 1})
            await index.announce(*HOLDER, {KEYS[1]: 1})
            await eventually(lambda: mirror.blocks.blocks(HOLDER) == {KEYS[1]: 1})
            await mirror.stop()
            await writer.aclose()
            await reader.aclose()


class Takeover(dict[bytes, int]):
    """Blocks; another server takes over while they are read."""

    def __init__(self, blocks: dict[bytes, int], proxy: Proxy, other: Server) -> None:
        super().__init__(blocks)
        self._proxy, self._other = proxy, other

    def items(self) -> Any:
        for number, item in enumerate(super().items()):
            if number == len(self) // 2:
                self._proxy.switch(self._other)
            yield item


async def test_blocks_that_come_half_to_one_server_and_half_to_another_are_not_announced(tmp_path: Path) -> None:
    with replicated(tmp_path) as (primary, replica):
        promote(replica)
        async with proxy_of(primary) as proxy:
            client = connect(f"redis://127.0.0.1:{proxy.port}")
            index = BlockIndex(client, "test", TTL_S)
            with pytest.raises(Unavailable, match="another server has taken over"):
                await index.announce(*HOLDER, Takeover(MANY, proxy, replica))
            assert await blocks_in(index) == {}
            await index.announce(*HOLDER, MANY)
            assert await blocks_in(index) == MANY
            await client.aclose()


async def test_blocks_are_not_read_half_from_one_server_and_half_from_another(tmp_path: Path) -> None:
    """Their scans have different orders, so that blocks would be missing."""
    with replicated(tmp_path) as (primary, replica):
        async with proxy_of(primary) as proxy:
            client = connect(f"redis://127.0.0.1:{proxy.port}")
            index = BlockIndex(client, "test", TTL_S)
            await index.announce(*HOLDER, MANY)
            await eventually(lambda: is_equal(primary, replica))
            promote(replica)
            pages = index.pages(HOLDER)
            assert 0 < len(await anext(pages)) < len(MANY)
            proxy.switch(replica)
            with pytest.raises(Unavailable):
                await anext(pages)
            assert await blocks_in(index) == MANY
            await client.aclose()


def cut_off(primary: Server, replica: Server) -> None:
    """The replica is told nothing any more, as by a network that has failed."""
    with primary.client(password="secret") as ours, replica.client(password="secret") as theirs:
        theirs.config_set("masterauth", "wrong")
        ours.execute_command("CLIENT", "KILL", "TYPE", "replica")
        wait_for(lambda: theirs.info("replication")["master_link_status"] == "down")


def is_named(sentinel: Server, primary: Server) -> bool:
    with sentinel.client() as client:
        return bool(client.sentinel_get_master_addr_by_name("main")[1] == primary.port)


@pytest.mark.slow
async def test_changes_that_are_lost_in_a_failover_of_sentinels_are_made_good(tmp_path: Path) -> None:
    with watched(tmp_path) as servers:
        client = connect(servers.url)
        held = Held(client)
        async with held.published():
            await eventually(lambda: is_equal(servers.primary, servers.replica, password="secret"))
            cut_off(servers.primary, servers.replica)
            held.hold(KEYS[10:20])
            await eventually(held.is_known)
            servers.primary.kill()
            await eventually(lambda: all(is_named(each, servers.replica) for each in servers.sentinels), FAILOVER_S)
            held.hold(KEYS[20:21])
            await eventually(held.is_known)
            assert held.publisher.outages == 0, "it was told by an error"
        await client.aclose()
