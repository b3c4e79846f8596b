"""The host store over real gRPC, with scripted workers."""

import asyncio
import mmap
import os
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import FailedPrecondition, StartupError, Unavailable
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import packed_from_wire
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, types_pb2
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.layout import DATA_OFFSET
from pbkv_cluster.store.server import HostStore
from pbkv_cluster.store.servicer import WorkerAddresses

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.store_pb2_grpc import StoreServiceAsyncStub

PAGE = mmap.PAGESIZE
TTL_S = 10.0
TIMEOUT_S = 20.0


@dataclass
class ScriptedWorker(store_pb2_grpc.StoreServiceServicer):
    """A worker's store service with scripted answers."""

    blocks: int  # cached; its host tier has twice as many
    loaded: int = 0
    policy: str = "pbkv-paper"
    fault: Exception | None = None
    at_once: bool = True
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    prefetched: list[tuple[bytes, str]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)  # of blocks, by the beginning that is asked for; any other is "ab"
    limits: list[int] = field(default_factory=list)  # of lists that were asked for
    server: RpcServer = field(default_factory=RpcServer)

    async def start(self) -> str:
        if self.at_once:
            self.answers.set()
        service = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
        self.server.add(service, store_pb2_grpc.add_StoreServiceServicer_to_server, self)
        return await self.server.start("127.0.0.1", 0)

    async def ListCache(  # noqa: N802
        self, request: store_pb2.ListCacheRequest, context: Any
    ) -> store_pb2.ListCacheResponse:
        if self.fault is not None:
            raise self.fault
        self.limits.append(request.limit)
        gpu = types_pb2.TierTokens(tier=types_pb2.TIER_GPU, tokens=16 * self.blocks)
        host = types_pb2.TierTokens(tier=types_pb2.TIER_HOST, tokens=32)
        return store_pb2.ListCacheResponse(
            entries=[
                store_pb2.CachedBlocks(
                    name=name, worker_id=self.policy, tokens=gpu.tokens, tiers=tiers, agents=[self.policy], idle_s=self.blocks
                )
                for name, tiers in (("both", [gpu]), (self.policy, [gpu, host]))
            ],
            shared=[gpu, host],
        )

    async def ExplainCache(  # noqa: N802
        self, request: store_pb2.ExplainCacheRequest, context: Any
    ) -> store_pb2.ExplainCacheResponse:
        key = self.keys.get(request.block, "ab")
        decisions = [store_pb2.CacheDecision(worker_id=self.policy, reason="load", age_s=self.blocks, key=key)]
        blocks = [store_pb2.CachedBlock(worker_id=self.policy)]
        return store_pb2.ExplainCacheResponse(keys=[key], blocks=blocks, decisions=decisions)

    async def CheckCache(  # noqa: N802
        self, request: store_pb2.CheckCacheRequest, context: Any
    ) -> store_pb2.CheckCacheResponse:
        return store_pb2.CheckCacheResponse(
            checked_blocks=self.blocks, damaged_blocks=1, changed_blocks=2, damaged=[self.policy]
        )

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        if self.fault is not None:
            raise self.fault
        await self.answers.wait()
        tiers = [
            store_pb2.TierStat(
                tier=tier, capacity_blocks=factor * 100, used_blocks=factor * self.blocks, locked_blocks=1, block_bytes=512
            )
            for factor, tier in ((1, types_pb2.TIER_GPU), (2, types_pb2.TIER_HOST))
        ]
        decisions = {"load": self.blocks, f"only_{self.blocks}": 1}
        return store_pb2.StatResponse(store=store_pb2.StoreStat(tiers=tiers, policy=self.policy, decisions=decisions))

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        if self.fault is not None:
            raise self.fault
        self.prefetched.append((packed_from_wire(request.prompt.token_ids, "prompt.token_ids"), request.tenant))
        return store_pb2.PrefetchResponse(loaded_tokens=self.loaded, resident_tokens=self.loaded + self.blocks)

    async def LeaseBlocks(  # noqa: N802
        self, request: store_pb2.LeaseBlocksRequest, context: Any
    ) -> store_pb2.LeaseBlocksResponse:
        return store_pb2.LeaseBlocksResponse(cached_tokens=self.blocks, leased_tokens=self.blocks // 2)

    async def ReleaseBlocks(  # noqa: N802
        self, request: store_pb2.ReleaseBlocksRequest, context: Any
    ) -> store_pb2.ReleaseBlocksResponse:
        return store_pb2.ReleaseBlocksResponse(released_tokens=self.blocks // 2)

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        if self.fault is not None:
            raise self.fault
        dropped, self.blocks = self.blocks, 0
        return store_pb2.ClearResponse(dropped_blocks=dropped)

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        raise AssertionError("workers give no memory")


@dataclass
class Node:
    """A host store and a channel to it."""

    arena: Arena
    clock: ManualClock
    address: str
    stub: "StoreServiceAsyncStub"
    directory: dict[str, str]  # addresses of workers by id
    workers: list[ScriptedWorker] = field(default_factory=list)

    async def add(self, worker: ScriptedWorker) -> str:
        address = await worker.start()
        self.workers.append(worker)
        self.directory[f"worker-{len(self.workers)}"] = address
        await self.acquire(f"worker-{len(self.workers)}")
        return address

    async def acquire(self, worker_id: str, size: int = PAGE) -> store_pb2.LeaseArenaResponse:
        request = store_pb2.LeaseArenaRequest(worker_id=worker_id, bytes=size)
        return await self.stub.LeaseArena(request, timeout=TIMEOUT_S)

    async def stat(self) -> store_pb2.StoreStat:
        return (await self.stub.Stat(store_pb2.StatRequest(), timeout=TIMEOUT_S)).store


def directory_of(addresses: Mapping[str, str]) -> WorkerAddresses:
    async def workers() -> Mapping[str, str]:
        return addresses

    return workers


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with serving_node() as node:
        yield node


def is_open(file: os.stat_result) -> bool:
    """Whether this process has a file open."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), file):
                return True
    return False


@asynccontextmanager
async def serving_node(worker_timeout_s: float = 10.0) -> AsyncIterator[Node]:
    clock = ManualClock()
    arena = Arena(uuid.uuid4().hex, 8 * PAGE, TTL_S, clock)
    file = arena.path.stat()
    workers: dict[str, str] = {}
    store = HostStore(arena, directory_of(workers), worker_timeout_s=worker_timeout_s)
    address = await store.start("127.0.0.1")
    async with connect(address) as channel:
        node = Node(arena, clock, address, store_pb2_grpc.StoreServiceStub(channel), workers)
        yield node
    await store.stop()
    for worker in node.workers:
        await worker.server.stop(0)
    assert not is_open(file)


async def test_a_region_comes_with_where_to_map_it(node: Node) -> None:
    one, two = await node.acquire("one", 3 * PAGE - 7), await node.acquire("two", PAGE)
    assert (one.path, one.offset, one.bytes, one.lease_s) == (str(node.arena.path), DATA_OFFSET, 3 * PAGE, TTL_S)
    assert (two.offset, two.bytes) == (DATA_OFFSET + 3 * PAGE, PAGE)
    assert await node.acquire("one", 3 * PAGE - 7) == one
    assert await asyncio.to_thread(os.path.getsize, one.path) == DATA_OFFSET + 8 * PAGE


@pytest.mark.parametrize(
    ("worker_id", "size", "code", "details"),
    [
        ("one", -5, StatusCode.INVALID_ARGUMENT, "bytes: "),
        ("", PAGE, StatusCode.INVALID_ARGUMENT, "worker_id: "),
        ("w" * 257, PAGE, StatusCode.INVALID_ARGUMENT, "worker_id: at most 256 bytes, got 257"),
        ("one", 9 * PAGE, StatusCode.RESOURCE_EXHAUSTED, "the arena of "),
    ],
)
async def test_a_region_that_cannot_be_given_is_refused(
    node: Node, worker_id: str, size: int, code: StatusCode, details: str
) -> None:
    with pytest.raises(aio.AioRpcError, match=details) as error:
        await node.acquire(worker_id, size)
    assert error.value.code() is code
    assert node.arena.regions() == {}


async def test_stat_is_the_sum_over_the_workers(node: Node) -> None:
    assert await node.stat() == store_pb2.StoreStat()
    await node.add(ScriptedWorker(blocks=10))
    await node.add(ScriptedWorker(blocks=7, policy="lru"))
    await node.acquire("not serving yet")
    stat = await node.stat()
    assert {
        tier.tier: (tier.capacity_blocks, tier.used_blocks, tier.locked_blocks, tier.block_bytes) for tier in stat.tiers
    } == {
        types_pb2.TIER_GPU: (200, 17, 2, 512),
        types_pb2.TIER_HOST: (400, 34, 2, 512),
    }
    assert stat.decisions == {"load": 17, "only_10": 1, "only_7": 1}
    assert stat.policy == "lru,pbkv-paper"


async def test_only_workers_of_the_directory_are_called(node: Node) -> None:
    """Neither one that has merely asked for a region, nor one of the directory that has none here."""
    known, stranger = ScriptedWorker(blocks=10), ScriptedWorker(blocks=1000)
    await node.add(known)
    await node.add(stranger)
    del node.directory["worker-2"]
    node.workers.append(elsewhere := ScriptedWorker(blocks=500))
    node.directory["elsewhere"] = await elsewhere.start()
    await node.acquire("stranger")
    assert (await node.stat()).decisions == {"load": 10, "only_10": 1}


async def test_regions_are_bounded_in_number(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbkv_cluster.store.arena.arena.MAX_REGIONS", 2)
    await node.acquire("one", 0)
    await node.acquire("two", 0)
    with pytest.raises(aio.AioRpcError, match="2 workers have a region of this node's arena") as error:
        await node.acquire("three", 0)
    assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
    await node.acquire("two", 0)  # renews


async def test_prefetch_reaches_every_worker(node: Node) -> None:
    prompt = types_pb2.PackedTokens(data=pack(range(40)))
    request = store_pb2.PrefetchRequest(prompt=types_pb2.Prompt(token_ids=prompt), tenant="acme")
    nothing = await node.stub.Prefetch(request, timeout=TIMEOUT_S)
    assert (nothing.loaded_tokens, nothing.resident_tokens) == (0, 0)
    for worker in (ScriptedWorker(blocks=16, loaded=32), ScriptedWorker(blocks=32, loaded=0)):
        await node.add(worker)
    done = await node.stub.Prefetch(request, timeout=TIMEOUT_S)
    assert (done.loaded_tokens, done.resident_tokens) == (32, 48)
    assert [worker.prefetched for worker in node.workers] == [[(prompt.data, "acme")]] * 2


async def test_clear_reaches_every_worker(node: Node) -> None:
    for blocks in (3, 4):
        await node.add(ScriptedWorker(blocks))
    assert (await node.stub.Clear(store_pb2.ClearRequest(), timeout=TIMEOUT_S)).dropped_blocks == 7
    assert (await node.stub.Clear(store_pb2.ClearRequest(), timeout=TIMEOUT_S)).dropped_blocks == 0


async def test_who_refuses_is_named_and_all_others_have_done_what_was_asked(node: Node) -> None:
    workers = [ScriptedWorker(3), ScriptedWorker(4), ScriptedWorker(5)]
    addresses = [await node.add(worker) for worker in workers]
    workers[0].fault = FailedPrecondition("it runs a step")
    with pytest.raises(aio.AioRpcError) as error:
        await node.stub.Clear(store_pb2.ClearRequest(), timeout=TIMEOUT_S)
    assert error.value.code() is StatusCode.FAILED_PRECONDITION
    assert error.value.details() == (f"it runs a step (the worker at {addresses[0]}); 2 of 3 workers have done what was asked")
    assert [worker.blocks for worker in workers] == [3, 0, 0]
    workers[1].fault = Unavailable("it is busy")
    with pytest.raises(aio.AioRpcError, match=f"it runs a step .*; .*{addresses[1]}.*; 1 of 3 workers") as error:
        await node.stub.Clear(store_pb2.ClearRequest(), timeout=TIMEOUT_S)
    assert error.value.code() is StatusCode.FAILED_PRECONDITION
    for worker in workers:
        worker.fault = FailedPrecondition("none does that")
    with pytest.raises(aio.AioRpcError) as error:
        await node.stub.Clear(store_pb2.ClearRequest(), timeout=TIMEOUT_S)
    assert error.value.details() == "none does that"


async def test_lists_of_all_workers_are_put_together(node: Node) -> None:
    workers = [ScriptedWorker(3, policy="lru"), ScriptedWorker(4, policy="pbkv")]
    for worker in workers:
        await node.add(worker)

    async def listed(by: store_pb2.CacheGrouping, limit: int) -> list[tuple[str, str, int]]:
        request = store_pb2.ListCacheRequest(by=by, limit=limit)
        return [(e.name, e.worker_id, e.tokens) for e in (await node.stub.ListCache(request, timeout=TIMEOUT_S)).entries]

    runs = await listed(store_pb2.CACHE_GROUPING_RUN, 3)
    assert [tokens for *_, tokens in runs] == [64, 64, 48]
    assert workers[0].limits == [3]
    assert await listed(store_pb2.CACHE_GROUPING_WORKFLOW, 2) == [("both", "", 112), ("pbkv", "pbkv", 64)]
    assert workers[0].limits == [3, 1000]  # the sum of an entry that is not among the first two of a worker counts, too
    request = store_pb2.ListCacheRequest(by=store_pb2.CACHE_GROUPING_AGENT)
    found = await node.stub.ListCache(request, timeout=TIMEOUT_S)
    assert [(each.tier, each.tokens) for each in found.shared] == [(types_pb2.TIER_GPU, 112), (types_pb2.TIER_HOST, 64)]
    both, *others = found.entries
    assert sorted(both.agents) == ["lru", "pbkv"]  # in the order of the workers' addresses
    assert both.idle_s == 3
    assert [(each.tier, each.tokens) for each in both.tiers] == [(types_pb2.TIER_GPU, 112)]
    assert len(others) == 2


async def test_explanations_of_all_workers_are_put_together(node: Node) -> None:
    for worker in (ScriptedWorker(3, policy="one", keys={"a": "aa"}), ScriptedWorker(2, policy="two")):
        await node.add(worker)
    found = await node.stub.ExplainCache(store_pb2.ExplainCacheRequest(block="ab"), timeout=TIMEOUT_S)
    assert (list(found.keys), sorted(block.worker_id for block in found.blocks)) == (["ab"], ["one", "two"])
    assert [decision.worker_id for decision in found.decisions] == ["two", "one"]  # the latest first
    last = await node.stub.ExplainCache(store_pb2.ExplainCacheRequest(block="ab", limit=1), timeout=TIMEOUT_S)
    assert [decision.worker_id for decision in last.decisions] == ["two"]
    # A beginning that is unambiguous on each worker, but not on both together.
    several = await node.stub.ExplainCache(store_pb2.ExplainCacheRequest(block="a"), timeout=TIMEOUT_S)
    assert (sorted(several.keys), list(several.blocks), list(several.decisions)) == (["aa", "ab"], [], [])


async def test_checks_of_all_workers_are_added_up(node: Node) -> None:
    for worker in (ScriptedWorker(3, policy="one"), ScriptedWorker(4, policy="two")):
        await node.add(worker)
    checked = await node.stub.CheckCache(store_pb2.CheckCacheRequest(), timeout=TIMEOUT_S)
    assert (checked.checked_blocks, checked.changed_blocks, checked.damaged_blocks) == (7, 4, 2)
    assert sorted(checked.damaged) == ["one", "two"]


async def test_a_worker_s_error_is_passed_on(node: Node) -> None:
    await node.add(ScriptedWorker(blocks=1))
    prompt = types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=b"abc"))
    with pytest.raises(aio.AioRpcError, match=r"prompt\.token_ids\.data: 3 bytes") as error:
        await node.stub.Prefetch(store_pb2.PrefetchRequest(prompt=prompt), timeout=TIMEOUT_S)
    assert error.value.code() is StatusCode.INVALID_ARGUMENT


async def unavailable(node: Node) -> list[str]:
    calls: list[Any] = [
        node.stub.Stat(store_pb2.StatRequest(), timeout=TIMEOUT_S),
        node.stub.Prefetch(store_pb2.PrefetchRequest(), timeout=TIMEOUT_S),
        node.stub.Clear(store_pb2.ClearRequest(), timeout=TIMEOUT_S),
    ]
    details = []
    for call in calls:
        with pytest.raises(aio.AioRpcError) as error:
            await call
        assert error.value.code() is StatusCode.UNAVAILABLE
        details.append(error.value.details() or "")
    return details


async def test_a_dead_worker_is_named_until_its_region_expires(node: Node) -> None:
    gone = await node.add(ScriptedWorker(blocks=5))
    await node.add(ScriptedWorker(blocks=2))
    await node.workers[0].server.stop(0)
    assert all(f"the worker at {gone} cannot be asked" in details for details in await unavailable(node))
    node.clock.advance(0.9 * TTL_S)
    await node.acquire("worker-2")  # the other worker renews
    node.clock.advance(0.2 * TTL_S)
    assert (await node.stat()).tiers[0].capacity_blocks == 100


async def test_a_worker_whose_engine_has_ended_is_named(node: Node) -> None:
    address = await node.add(ScriptedWorker(blocks=5, fault=Unavailable("the worker's engine has ended")))
    with pytest.raises(aio.AioRpcError, match=f"at {re.escape(address)} cannot be asked: the worker's engine has ended"):
        await node.stat()


async def test_a_worker_that_does_not_answer_is_named() -> None:
    async with serving_node(worker_timeout_s=0.05) as node:
        address = await node.add(ScriptedWorker(blocks=5, at_once=False))
        with pytest.raises(aio.AioRpcError, match=f"the worker at {re.escape(address)} does not answer") as error:
            await node.stat()
        assert error.value.code() is StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_is_refused(node: Node) -> None:
    arena = Arena(uuid.uuid4().hex, PAGE, TTL_S, node.clock)
    file = arena.path.stat()
    store = HostStore(arena, directory_of({}))
    with pytest.raises(StartupError, match="cannot listen"):
        await store.start("127.0.0.1", int(node.address.rpartition(":")[2]))
    await store.stop()
    assert not is_open(file)


async def test_a_stopped_store_gives_no_regions() -> None:
    store = HostStore(Arena(uuid.uuid4().hex, PAGE, TTL_S, ManualClock()), directory_of({}))
    address = await store.start("127.0.0.1")
    await store.stop()
    async with connect(address) as channel:
        with pytest.raises(grpc.RpcError) as error:
            await store_pb2_grpc.StoreServiceStub(channel).LeaseArena(store_pb2.LeaseArenaRequest(worker_id="w", bytes=1))
    assert isinstance(error.value, aio.AioRpcError)
    assert error.value.code() is StatusCode.UNAVAILABLE


async def test_workers_whose_engine_has_no_such_call_are_left_out_where_others_have_it(node: Node) -> None:
    ours, foreign = ScriptedWorker(blocks=32, loaded=32), ScriptedWorker(0)
    foreign.fault = FailedPrecondition("vLLM loads nothing ahead of its use")
    await node.add(foreign)
    request = store_pb2.PrefetchRequest(prompt=types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack(range(40)))))
    with pytest.raises(aio.AioRpcError, match="vLLM loads nothing ahead of its use"):
        await node.stub.Prefetch(request, timeout=TIMEOUT_S)
    address = await node.add(ours)
    assert (await node.stub.Prefetch(request, timeout=TIMEOUT_S)).loaded_tokens == 32
    listed = await node.stub.ListCache(store_pb2.ListCacheRequest(), timeout=TIMEOUT_S)
    assert {entry.worker_id for entry in listed.entries} == {ours.policy}
    ours.fault = Unavailable("it is away")
    with pytest.raises(aio.AioRpcError, match=f"the worker at {address} cannot be asked: it is away"):
        await node.stub.Prefetch(request, timeout=TIMEOUT_S)
