"""`pbkv cache` against the gateway's store service, with scripted answers."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, types_pb2
from tests.cli.conftest import Pbkv


class Store(store_pb2_grpc.StoreServiceServicer):
    """Answers as a cluster's gateway does."""

    damaged = 0

    def __init__(self) -> None:
        self.asked: list[store_pb2.ListCacheRequest] = []

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        tier = store_pb2.TierStat(
            tier=types_pb2.TIER_GPU, capacity_blocks=100, used_blocks=50, locked_blocks=2, ready_blocks=100, block_bytes=1 << 20
        )
        return store_pb2.StatResponse(store=store_pb2.StoreStat(tiers=[tier], policy="pbkv", decisions={"load": 3}))

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        return store_pb2.PrefetchResponse()

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        return store_pb2.LeaseArenaResponse()

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        return store_pb2.ClearResponse(dropped_blocks=1234)

    async def ListCache(  # noqa: N802
        self, request: store_pb2.ListCacheRequest, context: Any
    ) -> store_pb2.ListCacheResponse:
        self.asked.append(request)
        if request.workflow_id:
            return store_pb2.ListCacheResponse()
        entry = store_pb2.CachedBlocks(
            name="",
            worker_id="worker-1",
            start_tokens=32,
            tokens=4096,
            tiers=[types_pb2.TierTokens(tier=types_pb2.TIER_HOST, tokens=4096)],
            agents=["planner"],
            idle_s=7,
            recent_uses=1.5,
        )
        return store_pb2.ListCacheResponse(entries=[entry])

    async def ExplainCache(  # noqa: N802
        self, request: store_pb2.ExplainCacheRequest, context: Any
    ) -> store_pb2.ExplainCacheResponse:
        return store_pb2.ExplainCacheResponse()

    async def CheckCache(  # noqa: N802
        self, request: store_pb2.CheckCacheRequest, context: Any
    ) -> store_pb2.CheckCacheResponse:
        damaged = ["ab" * 16][: self.damaged]
        return store_pb2.CheckCacheResponse(checked_blocks=10, changed_blocks=1, damaged_blocks=self.damaged, damaged=damaged)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def endpoint(store: Store) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> RpcServer:
        server = RpcServer()
        service = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
        server.add(service, store_pb2_grpc.add_StoreServiceServicer_to_server, store)
        await server.start("127.0.0.1", 0)
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield server.address
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_stat_shows_how_full_the_tiers_are(pbkv: Pbkv, endpoint: str) -> None:
    shown = pbkv("cache", "stat", "--endpoint", endpoint)
    assert shown.code == 0
    for what in ("50 MiB", "100 MiB", "50 of 100", "policy pbkv", "load 3"):
        assert what in shown.out
    tiers = json.loads(pbkv("cache", "stat", "--endpoint", endpoint, "--json", "-").out)["tiers"]
    assert tiers[0]["tier"] == "gpu"
    assert tiers[0]["used_blocks"] == 50


def test_ls_asks_for_what_was_given_and_shows_it(pbkv: Pbkv, endpoint: str, store: Store) -> None:
    shown = pbkv("cache", "ls", "--endpoint", endpoint, "--order", "hottest", "--limit", "3", "--agent", "planner")
    assert shown.code == 0
    for what in ("(no active one)", "4,096", "host 4,096", "worker-1", "planner", "7 s", "1.5"):
        assert what in shown.out
    (asked,) = store.asked
    assert (asked.by, asked.order) == (store_pb2.CACHE_GROUPING_RUN, store_pb2.CACHE_ORDER_HOTTEST)
    assert (asked.limit, asked.agent_id, asked.workflow_id) == (3, "planner", "")


@pytest.mark.parametrize("by", ["workflow", "agent"])
def test_ls_sums_up(pbkv: Pbkv, endpoint: str, store: Store, by: str) -> None:
    shown = pbkv("cache", "ls", "--by", by, "--endpoint", endpoint, "--json", "-")
    (entry,) = json.loads(shown.out)
    assert entry["tiers"] == {"host": 4096}
    assert store.asked[0].by == store_pb2.CacheGrouping.Value(f"CACHE_GROUPING_{by.upper()}")


def test_ls_says_that_nothing_fits(pbkv: Pbkv, endpoint: str) -> None:
    assert "nothing is cached that fits" in pbkv("cache", "ls", "--workflow", "w", "--endpoint", endpoint).out


def test_clear_says_what_was_dropped(pbkv: Pbkv, endpoint: str) -> None:
    assert "1,234 blocks dropped" in pbkv("cache", "clear", "--endpoint", endpoint).out


def test_check_fails_where_a_block_is_damaged(pbkv: Pbkv, endpoint: str, store: Store) -> None:
    sound = pbkv("cache", "check", "--endpoint", endpoint)
    assert (sound.code, "10 blocks compared, 0 damaged" in sound.out) == (0, True)
    store.damaged = 1
    damaged = pbkv("cache", "check", "--endpoint", endpoint)
    assert damaged.code == 1
    assert "ab" * 16 in damaged.out


@pytest.mark.parametrize("command", ["stat", "ls", "clear", "check"])
def test_no_cluster_is_said_in_one_line(pbkv: Pbkv, command: str) -> None:
    refused = pbkv("cache", command, "--endpoint", "127.0.0.1:1")
    assert refused.code == 1
    assert refused.err.startswith("pbkv: failed to connect")
    assert refused.err.count("\n") == 1
