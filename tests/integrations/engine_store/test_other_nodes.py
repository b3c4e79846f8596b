"""Blocks of engines on other nodes, found by the index in Redis and read from their nodes' host stores."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pbkv_cluster.core.blocks import BlockLabel, Namespace
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.integrations.engine_store import EngineStore, StoreSettings
from pbkv_cluster.integrations.engine_store.other_nodes import LEASE_S, OtherNodes
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, RedisServer, connect
from tests.integrations.engine_store.engines import engine, got, keys, node, put, settings
from tests.polling import eventually, wait_for


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisServer.resolve("") as server:
        yield server.url


def test_blocks_of_another_node_are_read_and_kept(redis_url: str) -> None:
    here, there = settings(redis_url=redis_url), settings(redis_url=redis_url)
    with node(here), node(there), engine(there) as far, engine(here) as near:
        put(far, 1, 2, 3)
        wait_for(lambda: near.leading(keys(1, 2, 3, 4)) == 3)
        assert got(near, 1, 2, 3, 4) == [1, 2, 3, None]
        assert near.counts["loaded_remote"] == 3
        assert got(near, 1, 2, 3) == [1, 2, 3]
        assert near.counts["loaded_own"] == 3


def test_a_node_that_does_not_answer_costs_its_own_blocks_only(redis_url: str) -> None:
    here, other = (settings(redis_url=redis_url, cluster="lost") for _ in range(2))
    with ExitStack() as stack:
        near = stack.enter_context(with_node(here))
        far = stack.enter_context(with_node(other))
        put(far, 2)
        with node(settings(redis_url=redis_url, cluster="lost")) as there:
            lost = stack.enter_context(engine(there))
            put(lost, 1)
            wait_for(lambda: near.leading(keys(1, 2)) == 2)
        # Its host store has ended; the engine, and its entries in the index, are still there.
        assert got(near, 1, 2) == [None, 2]
        assert near.counts["load_unavailable"] == 1
        assert near.leading(keys(1)) == 0  # it is left alone


@contextmanager
def with_node(of: StoreSettings) -> Iterator[EngineStore]:
    with node(of), engine(of) as store:
        yield store


def test_without_redis_the_node_alone_serves() -> None:
    here = settings(redis_url="redis://127.0.0.1:1/0")
    with node(here), engine(here) as one, engine(here) as two:
        put(one, 1)
        wait_for(lambda: two.leading(keys(1)) == 1)
        assert got(two, 1) == [1]
        wait_for(lambda: "Redis" in one.problem)


async def test_what_is_stored_while_an_engine_is_being_announced_is_announced_too(redis_url: str) -> None:
    kind, held = Namespace("model", "revision", "float32", "layout"), Residency(frozenset({Tier.HOST}), 3)
    label = BlockLabel(kind.digest(), kind.digest(), bytes(16), b"")
    nodes = OtherNodes(redis_url, "announced", kind, "node")

    def blocks() -> dict[bytes, Residency]:
        nodes.record(label, held)  # just after the first look at the region
        return {}

    nodes.start()
    await nodes.publish("engine", "127.0.0.1:1", blocks, 64)
    name = f"announced.engines.{kind.digest().hex()}"
    redis = connect(redis_url, name)

    async def is_announced() -> bool:
        (entry,) = await Directory(redis, name, LEASE_S).workers()
        found = await BlockIndex(redis, name, LEASE_S).residencies(("engine", entry.incarnation), [label.key])
        return found == [held.pack()]

    await eventually(is_announced)
    await nodes.stop()
    await redis.aclose()
