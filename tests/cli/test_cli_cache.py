"""`pbkv cache` against the gateway's store service, with scripted answers."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.errors import NotFound
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc, store_pb2, store_pb2_grpc, types_pb2
from tests.cli.conftest import Pbkv


class Store(store_pb2_grpc.StoreServiceServicer):
    """Answers as a cluster's gateway does."""

    damaged = 0

    def __init__(self) -> None:
        self.prefetches: list[store_pb2.PrefetchRequest] = []
        self.leases: list[store_pb2.LeaseBlocksRequest] = []
        self.released: list[store_pb2.ReleaseBlocksRequest] = []
        self.explained: list[store_pb2.ExplainCacheRequest] = []
        self.explanations: dict[str, store_pb2.ExplainCacheResponse] = {}  # by block
        self.asked: list[store_pb2.ListCacheRequest] = []

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        tier = store_pb2.TierStat(
            tier=types_pb2.TIER_GPU, capacity_blocks=100, used_blocks=50, locked_blocks=2, ready_blocks=100, block_bytes=1 << 20
        )
        return store_pb2.StatResponse(store=store_pb2.StoreStat(tiers=[tier], policy="pbkv", decisions={"load": 3}))

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        self.prefetches.append(request)
        host = types_pb2.TierTokens(tier=types_pb2.TIER_HOST, tokens=1024)
        return store_pb2.PrefetchResponse(loaded_tokens=1024, resident_tokens=2048, tokens=4096, tiers=[host])

    async def LeaseBlocks(  # noqa: N802
        self, request: store_pb2.LeaseBlocksRequest, context: Any
    ) -> store_pb2.LeaseBlocksResponse:
        self.leases.append(request)
        return store_pb2.LeaseBlocksResponse(cached_tokens=2048, leased_tokens=1024)

    async def ReleaseBlocks(  # noqa: N802
        self, request: store_pb2.ReleaseBlocksRequest, context: Any
    ) -> store_pb2.ReleaseBlocksResponse:
        self.released.append(request)
        return store_pb2.ReleaseBlocksResponse(released_tokens=512)

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
        self.explained.append(request)
        return self.explanations.get(request.block, store_pb2.ExplainCacheResponse())

    async def CheckCache(  # noqa: N802
        self, request: store_pb2.CheckCacheRequest, context: Any
    ) -> store_pb2.CheckCacheResponse:
        damaged = ["ab" * 16][: self.damaged]
        return store_pb2.CheckCacheResponse(checked_blocks=10, changed_blocks=1, damaged_blocks=self.damaged, damaged=damaged)


class Inspection(inspection_pb2_grpc.InspectionServiceServicer):
    """Knows no workflow, and an index that may be wrong."""

    def __init__(self) -> None:
        self.index = inspection_pb2.CheckIndexResponse(indexed_blocks=20, held_blocks=21, changing_blocks=1)

    async def ListWorkflows(  # noqa: N802
        self, request: inspection_pb2.ListWorkflowsRequest, context: Any
    ) -> inspection_pb2.ListWorkflowsResponse:
        return inspection_pb2.ListWorkflowsResponse()

    async def GetWorkflow(  # noqa: N802
        self, request: inspection_pb2.GetWorkflowRequest, context: Any
    ) -> inspection_pb2.GetWorkflowResponse:
        raise NotFound(f"no open workflow {request.workflow_id!r}")

    async def ListAgents(  # noqa: N802
        self, request: inspection_pb2.ListAgentsRequest, context: Any
    ) -> inspection_pb2.ListAgentsResponse:
        return inspection_pb2.ListAgentsResponse()

    async def CheckIndex(  # noqa: N802
        self, request: inspection_pb2.CheckIndexRequest, context: Any
    ) -> inspection_pb2.CheckIndexResponse:
        return self.index

    async def WatchWorkflows(  # noqa: N802
        self, request: inspection_pb2.WatchWorkflowsRequest, context: Any
    ) -> AsyncIterator[inspection_pb2.WatchedEvent]:
        yield inspection_pb2.WatchedEvent()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def inspection() -> Inspection:
    return Inspection()


@pytest.fixture
def endpoint(store: Store, inspection: Inspection) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> RpcServer:
        server = RpcServer()
        service = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
        server.add(service, store_pb2_grpc.add_StoreServiceServicer_to_server, store)
        service = inspection_pb2.DESCRIPTOR.services_by_name["InspectionService"]
        server.add(service, inspection_pb2_grpc.add_InspectionServiceServicer_to_server, inspection)
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


def test_check_fails_where_the_index_is_wrong_for_good_and_not_for_changes(
    pbkv: Pbkv, endpoint: str, inspection: Inspection
) -> None:
    changing = pbkv("cache", "check", "--endpoint", endpoint)
    assert (changing.code, "20 blocks against 21 that workers hold" in changing.out) == (0, True)
    for count in ("unbacked_blocks", "missing_blocks", "misplaced_blocks"):
        difference = inspection_pb2.CheckIndexResponse.Difference(worker_id="w1", key="cd" * 16, problem=count[:-7])
        inspection.index = inspection_pb2.CheckIndexResponse(differences=[difference], **{count: 1})
        wrong = pbkv("cache", "check", "--endpoint", endpoint)
        assert (wrong.code, f"{count[:-7]}: {'cd' * 16} of w1" in wrong.out) == (1, True)


def test_a_prompt_or_a_workflow_is_prefetched(pbkv: Pbkv, endpoint: str, store: Store, tmp_path: Path) -> None:
    done = pbkv("cache", "prefetch", "hello", "--tenant", "acme", "--endpoint", endpoint)
    assert (done.code, done.out) == (0, "1,024 tokens loaded; 2,048 are on a GPU now\ncached of 4,096: host 1,024; 0 leased\n")
    talk = tmp_path / "talk.json"
    talk.write_text('[{"role": "user", "content": "hi"}]')
    assert pbkv("cache", "prefetch", "--messages", str(talk), "--endpoint", endpoint).code == 0
    assert pbkv("cache", "prefetch", "hi", "--chat", "--endpoint", endpoint).code == 0
    written = json.loads(pbkv("cache", "prefetch", "--workflow", "w", "--endpoint", endpoint, "--json", "-").out)
    assert written == {
        "loaded_tokens": 1024,
        "resident_tokens": 2048,
        "tokens": 4096,
        "tiers": {"host": 1024},
        "leased_tokens": 0,
        "lease_id": "",
        "staged_tokens": 0,
    }
    text, messages, chat, workflow = store.prefetches
    assert (text.prompt.text, text.tenant, text.workflow_id) == ("hello", "acme", "")
    assert messages.prompt == chat.prompt
    assert (workflow.workflow_id, workflow.HasField("prompt")) == ("w", False)
    both = pbkv("cache", "prefetch", "hello", "--workflow", "w", "--endpoint", endpoint)
    assert (both.code, both.err) == (2, "pbkv: --workflow: cannot be combined with a prompt or its options\n")


def test_a_prompt_is_leased_and_released(pbkv: Pbkv, endpoint: str, store: Store) -> None:
    done = pbkv("cache", "lease", "hello", "--seconds", "30", "--id", "mine", "--tenant", "acme", "--endpoint", endpoint)
    assert (done.code, done.out) == (0, "1,024 of 2,048 cached tokens leased for 30 s, as mine\n")
    (asked,) = store.leases
    assert (asked.prompt.text, asked.lease_id, asked.tenant, asked.lease_s) == ("hello", "mine", "acme", 30.0)
    ended = pbkv("cache", "release", "mine", "--tenant", "acme", "--endpoint", endpoint)
    assert (ended.code, ended.out) == (0, "512 tokens released\n")
    assert (store.released[0].lease_id, store.released[0].tenant) == ("mine", "acme")


KEY = "ab12" * 8


def test_a_block_is_explained_in_words(pbkv: Pbkv, endpoint: str, store: Store) -> None:
    run = store_pb2.CachedBlocks(name=KEY, worker_id="w1", start_tokens=32, tokens=64, agents=["coder"], idle_s=7)
    places = [
        store_pb2.CachedBlock.Place(tier=types_pb2.TIER_GPU, slot=3, value=0.5, standing="candidate", ahead=4, candidates=9),
        store_pb2.CachedBlock.Place(tier=types_pb2.TIER_HOST, slot=8, value=12.0, standing="needed", by_lru=True, is_copy=True),
    ]
    decisions = [
        store_pb2.CacheDecision(worker_id="w1", reason="evict_active", age_s=9, blocks=3, key=KEY, value=0.25, workflows=["w"]),
        store_pb2.CacheDecision(worker_id="w1", reason="compute", age_s=300, blocks=1, key=KEY),
        store_pb2.CacheDecision(worker_id="w1", reason="of_a_later_version", age_s=300, blocks=1, key=KEY),
    ]
    block = store_pb2.CachedBlock(worker_id="w1", run=run, policy="pbkv", places=places)
    store.explanations["ab12"] = store_pb2.ExplainCacheResponse(keys=[KEY], blocks=[block], decisions=decisions)
    shown = pbkv("explain", "ab12", "--limit", "7", "--endpoint", endpoint)
    assert shown.code == 0, shown.err
    for what in (
        f"Block {KEY}",
        "w1: in a run of tokens 32 to 96, used by coder, last used 7 s ago",
        "gpu slot 3: value 0.5 by pbkv; 4 of 9 runs of blocks that can leave the tier go before it",
        "host slot 8: by LRU, which evicts now, a copy of what a faster tier holds; it stays: blocks after it",
        "ab12ab12ab12 and 2 before it",
        "left the GPU, as what was worth least there",
        "5 min ago",
        "of_a_later_version",
    ):
        assert what in shown.out, what
    assert store.explained[0].limit == 7
    written = json.loads(pbkv("explain", "ab12", "--endpoint", endpoint, "--json", "-").out)
    assert [each["what"] for each in written["decisions"]] == ["evicted", "stored", ""]
    assert written["caches"][0]["places"][0]["ahead"] == 4


def test_what_cannot_be_explained_is_said_in_one_line(pbkv: Pbkv, endpoint: str, store: Store) -> None:
    store.explanations["ab"] = store_pb2.ExplainCacheResponse(keys=[KEY, "ab" * 16])
    several = pbkv("explain", "ab", "--endpoint", endpoint)
    assert several.code == 2
    assert several.err == f"pbkv: BLOCK: 'ab' is the beginning of several keys: {KEY}, {'ab' * 16}\n"
    for subject, problem in (
        ("no workflow", "'no workflow' is neither an open workflow nor the beginning of a block key"),
        ("cd" * 17, f"'{'cd' * 17}' is neither an open workflow nor the beginning of a block key"),
        ("cd", "'cd' is neither an open workflow nor the beginning of a block key that a cache knows"),
    ):
        unknown = pbkv("explain", subject, "--endpoint", endpoint)
        assert (unknown.code, unknown.err) == (1, f"pbkv: {problem}\n")
