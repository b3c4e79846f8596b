"""Another Redis server takes over that lacks the latest writes, since replication waits for nobody: the index is made good."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexMirror, connect
from pbkv_cluster.store.cluster_index.change_stream import ChangeStream
from tests.polling import eventually, wait_for
from tests.store.cluster_index.helpers import NAMESPACE
from tests.store.cluster_index.published import GPU, HOLDER, KEYS, TTL_S, WORKER, PublishedWorker, blocks_in
from tests.store.redis_connection.proxy import Proxy, proxy_of
from tests.store.redis_connection.servers import Server, is_equal, replicated, serving, watched

MANY = dict.fromkeys(block_keys(NAMESPACE, random.Random(6).randbytes(3000 * BLOCK_BYTES)), GPU.pack())
FAILOVER_S = 60.0


def promote(replica: Server) -> None:
    """What is written to its primary from now on is lost when that ends."""
    with replica.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("notice", [lambda worker: worker.hold(KEYS[20:21]), lambda worker: worker.clock.advance(TTL_S)])
async def test_lost_changes_are_noticed_by_the_next_change_or_renewal(
    tmp_path: Path, notice: Callable[[PublishedWorker], None]
) -> None:
    with replicated(tmp_path) as (primary, replica):
        async with proxy_of(primary) as proxy:
            client = connect(f"redis://127.0.0.1:{proxy.port}")
            worker = PublishedWorker(client)
            async with worker.published():
                await eventually(lambda: is_equal(primary, replica))
                promote(replica)
                worker.hold(KEYS[10:20])
                await eventually(worker.is_known)
                proxy.switch(replica)
                assert not await worker.is_known(), "the replica has all writes"
                notice(worker)
                await eventually(worker.is_known)
                assert worker.publisher.outages == 0, "it was told by an error"
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


async def test_a_change_whose_confirmation_is_late_is_sent_again_and_made_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with proxy_of(server) as proxy:
            client = connect(f"redis://127.0.0.1:{proxy.port}")
            index = BlockIndex(client, "test", TTL_S)
            await index.announce(*HOLDER, {KEYS[0]: 1})
            assert await index.publish(*HOLDER, {KEYS[1]: 1})  # so that the server knows both scripts
            stream = ChangeStream(client, "test")
            await stream.skip()
            made = await index.number(HOLDER)
            assert made is not None

            proxy.loses_answer_to = b"EVALSHA"
            assert await index.publish(*HOLDER, {KEYS[2]: 1})
            assert not proxy.loses_answer_to, "it has been asked"
            assert await index.number(HOLDER) == made + 1
            assert await index.publish(*HOLDER, {KEYS[1]: 0}), "its number is known"

            proxy.loses_answer_to = b"EVALSHA"
            await index.announce(*HOLDER, {KEYS[3]: 1})
            assert not proxy.loses_answer_to
            assert await index.publish(*HOLDER, {KEYS[4]: 1})
            assert await blocks_in(index) == {KEYS[3]: 1, KEYS[4]: 1}
            told = [(change.kind, dict(change.blocks())) for change in await stream.read(0.1)]
            assert told == [(b"c", {KEYS[2]: 1}), (b"c", {KEYS[1]: 0}), (b"a", {}), (b"c", {KEYS[4]: 1})]
            await client.aclose()


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
        worker = PublishedWorker(client)
        async with worker.published():
            await eventually(lambda: is_equal(servers.primary, servers.replica, password="secret"))
            cut_off(servers.primary, servers.replica)
            worker.hold(KEYS[10:20])
            await eventually(worker.is_known)
            servers.primary.kill()
            await eventually(lambda: all(is_named(each, servers.replica) for each in servers.sentinels), FAILOVER_S)
            worker.hold(KEYS[20:21])
            await eventually(worker.is_known)
            assert worker.publisher.outages == 0, "it was told by an error"
        await client.aclose()
