"""Workers of one node that use each other's blocks: read from the arena, without a lock or a call."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cache.sequence import fetch
from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import SHARED
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.gpu_worker.kv import other_workers
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.gpu_worker.kv.lanes import lane_speed
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import store_pb2_grpc, worker_pb2_grpc
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.block_map import BlockMap
from tests.gpu_worker.test_restored_worker import ARENA, POOLS, WORKER, At
from tests.gpu_worker.worker_rig import Rig, config, flip, host_store, serving, step, stored
from tests.polling import eventually

PROMPT = list(range(10, 80))  # four full blocks and some tokens


class Prefill:
    """How long the engines believe that a token takes to compute."""

    token_s = 100.0


@pytest.fixture
def prefill(monkeypatch: pytest.MonkeyPatch) -> Prefill:
    prefill = Prefill()
    monkeypatch.setattr(PrefillRate, "seconds", lambda self, tokens: tokens * prefill.token_s)
    return prefill


def settings(model: Path, **sections: Any) -> Config:
    engine = {**POOLS, **sections.pop("engine", {})}
    return config(model, engine=engine, cache={"write_through": True, "policy": "lru", **sections.pop("cache", {})})


class Node:
    """Two workers on one node; what the first stores, the second is told."""

    def __init__(self, arena: Arena, first: Rig, second: Rig, blocks: BlockMap) -> None:
        self.arena = arena
        self.first = first
        self.second = second
        self.blocks = blocks

    async def tell(self) -> None:
        """The second learns what the first holds."""
        self.blocks.replace(("first", "1"), "node", await self.first.held())


@asynccontextmanager
async def node(config: Config, at_once: bool = False) -> AsyncIterator[Node]:
    """With `at_once`, the second learns all that the first tells of its blocks, when it does."""
    blocks = BlockMap(SHARED)
    async with AsyncExitStack() as stack:
        arena, address = await stack.enter_async_context(host_store(ARENA))
        blocks.replace(("first", "1"), "node", ())
        listener = (lambda label, where: blocks.change(("first", "1"), [(label.key, where.pack())])) if at_once else None
        first = await stack.enter_async_context(serving(config, "first", host_store=At(address), on_change=listener))
        second = await stack.enter_async_context(
            serving(config, "second", host_store=At(address), blocks=blocks, node_id="node")
        )
        yield Node(arena, first, second, blocks)


@pytest.mark.usefixtures("prefill")
async def test_what_one_worker_has_computed_another_loads_from_its_region(llama: Path) -> None:
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        second = await both.second.run(step(PROMPT))
        assert second.usage.delivered == {Tier.SIBLING: 64}
        assert second.tokens == first.tokens
        assert (await both.second.decisions())["fetch"] == 4
        again = await both.second.run(step(PROMPT))
        assert again.usage.delivered == {Tier.GPU: 64}, "they are in its own cache now"
        assert again.tokens == first.tokens


@pytest.mark.usefixtures("prefill")
async def test_a_block_is_not_looked_for_before_it_has_been_copied(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards it is, although its worker does nothing any more."""
    go, to_host = threading.Event(), CpuCopies.to_host

    def late(self: CpuCopies, *arguments: Any) -> None:
        go.wait(60)
        to_host(self, *arguments)

    monkeypatch.setattr(CpuCopies, "to_host", late)
    async with node(settings(llama), at_once=True) as both:
        try:
            first = await both.first.run(step(PROMPT))
            assert await both.first.idle()
            second = await both.second.run(step(PROMPT))
            assert (second.tokens, second.usage.delivered) == (first.tokens, {})
            decisions = await both.second.decisions()
            assert (decisions.get("sibling_absent", 0), decisions.get("fetch", 0)) == (0, 0)
        finally:
            go.set()
        keys = block_keys(both.first.facts.namespace, pack(PROMPT))
        await eventually(lambda: all(any(both.blocks.places(key)) for key in keys))
        await both.second.clear()
        again = await both.second.run(step(PROMPT))
        assert (again.tokens, again.usage.delivered) == (first.tokens, {Tier.SIBLING: 64})


@pytest.mark.usefixtures("prefill")
async def test_two_steps_share_one_fetch(llama: Path) -> None:
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        answers = await asyncio.gather(*(both.second.run(step(PROMPT, workflow_id=f"w{n}")) for n in range(3)))
        assert all(answer.tokens == first.tokens for answer in answers)
        assert (await both.second.decisions())["fetch"] == 4


@pytest.mark.usefixtures("prefill")
async def test_flipped_bytes_are_a_miss_and_are_counted(llama: Path) -> None:
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await stored(both.arena, 4)
        await both.tell()
        flip(both.arena, RegionLayout(POOLS["host_blocks"], both.first.facts.block_bytes), "first")
        second = await both.second.run(step(PROMPT))
        assert second.tokens == first.tokens
        assert second.usage.delivered == {}
        decisions = await both.second.decisions()
        assert (decisions["sibling_damaged"], decisions["fetch_failed"], decisions["preempt_load_failed"]) == (4, 4, 1)
        assert len(both.blocks) == 0, "they are not asked for again"


@pytest.mark.usefixtures("prefill")
async def test_blocks_that_are_gone_are_computed(llama: Path) -> None:
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        await both.first.clear()
        second = await both.second.run(step(PROMPT))
        assert (second.tokens, second.usage.delivered) == (first.tokens, {})
        assert (await both.second.decisions())["sibling_absent"] == 4


@pytest.mark.usefixtures("prefill")
async def test_two_workers_race_for_blocks_that_their_owner_drops_meanwhile(llama: Path) -> None:
    """Each gets what is right: the owner's blocks, or what it computes itself."""
    blocks = BlockMap(SHARED)
    async with AsyncExitStack() as stack:
        _, address = await stack.enter_async_context(host_store(3 * ARENA))
        owner, *others = [
            await stack.enter_async_context(
                serving(settings(llama), name, host_store=At(address), blocks=blocks, node_id="node")
            )
            for name in ("first", "second", "third")
        ]
        for turn in range(4):
            prompt = [turn + 1, *PROMPT]
            first = await owner.run(step(prompt))
            blocks.replace(("first", "1"), "node", await owner.held())
            clearing = asyncio.create_task(owner.clear())
            answers = await asyncio.gather(*(rig.run(step(prompt)) for rig in others))
            await clearing
            assert [answer.tokens for answer in answers] == [first.tokens] * 2
        for rig in others:
            await rig.worker.thread.call(lambda engine: engine.cache.check_integrity())
            assert (await rig.decisions())["fetch"] > 0, "there was no race"


@pytest.mark.usefixtures("prefill")
async def test_blocks_of_another_tenant_data_type_or_model_are_never_read(llama: Path, model_dirs: Mapping[str, Path]) -> None:
    blocks = BlockMap(SHARED)
    async with AsyncExitStack() as stack:
        _, address = await stack.enter_async_context(host_store(4 * ARENA))

        async def worker(name: str, config: Config) -> Rig:
            served = serving(config, name, host_store=At(address), blocks=blocks, node_id="node")
            return await stack.enter_async_context(served)

        owner = await worker("first", settings(llama))
        first = await owner.run(step(PROMPT, tenant="acme"))
        blocks.replace(("first", "1"), "node", await owner.held())
        single = settings(llama)
        single = single.model_copy(update={"model": single.model.model_copy(update={"dtype": "float32"})})
        same, other_type, other_model = [
            await worker(name, config)
            for name, config in (("same", settings(llama)), ("single", single), ("qwen2", settings(model_dirs["qwen2"])))
        ]
        for rig, tenant in ((same, "other"), (other_type, "acme"), (other_model, "acme")):
            assert (await rig.run(step(PROMPT, tenant=tenant))).usage.delivered == {}
            assert "fetch" not in await rig.decisions()
        again = await same.run(step(PROMPT, tenant="acme"))
        assert (again.tokens, again.usage.delivered) == (first.tokens, {Tier.SIBLING: 64})


async def test_a_fetch_that_takes_longer_than_computing_is_not_made(llama: Path, prefill: Prefill) -> None:
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        await both.second.run(step(PROMPT))  # measures a fetch
        await both.second.clear()

        prefill.token_s = 1e-9
        again = await both.second.run(step(PROMPT))
        assert (again.tokens, again.usage.delivered) == (first.tokens, {})
        assert (await both.second.decisions())["fetch_skipped_slower"] == 4


@pytest.mark.usefixtures("prefill")
async def test_a_fetch_that_does_not_end_is_given_up(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    read = other_workers.OtherWorkers.read

    def late(self: Any, *arguments: Any) -> list[bool]:
        go.wait(60)
        return read(self, *arguments)

    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        monkeypatch.setattr(other_workers.OtherWorkers, "read", late)
        monkeypatch.setattr(fetch, "PATIENCE_MIN_S", 0.2)
        monkeypatch.setattr(fetch, "PATIENCE_MAX_S", 0.2)
        second = await both.second.run(step(PROMPT))
        assert (second.tokens, second.usage.delivered) == (first.tokens, {})
        decisions = await both.second.decisions()
        assert (decisions["fetch_late"], decisions["preempt_load_failed"]) == (4, 1)
        go.set()
        third = await both.second.run(step(PROMPT))
        assert (third.tokens, third.usage.delivered) == (first.tokens, {Tier.GPU: 64})


@pytest.mark.usefixtures("prefill")
async def test_nothing_waits_for_a_fetch_but_the_step_that_needs_it(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    read = other_workers.OtherWorkers.read

    def late(self: Any, *arguments: Any) -> list[bool]:
        go.wait(600)
        return read(self, *arguments)

    monkeypatch.setattr(other_workers.OtherWorkers, "read", late)
    monkeypatch.setattr(fetch, "PATIENCE_MAX_S", 600.0)
    monkeypatch.setattr(fetch, "PATIENCE_MIN_S", 600.0)
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        try:
            waits, cancelled = (asyncio.create_task(both.second.run(step(PROMPT, workflow_id=name))) for name in "ab")
            await eventually(lambda: both.second.running(2))
            assert (await both.second.run(step([6] * 20, workflow_id="other"))).tokens
            cancelled.cancel()
            await eventually(lambda: both.second.running(1))
            assert not waits.done()
        finally:
            go.set()
        assert (await waits).tokens == first.tokens


async def test_one_fetch_that_was_held_up_does_not_end_fetching(
    llama: Path, prefill: Prefill, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill.token_s = 1 / 500
    go = threading.Event()
    read = other_workers.OtherWorkers.read

    def late(self: Any, *arguments: Any) -> list[bool]:
        go.wait(60)
        return read(self, *arguments)

    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        with monkeypatch.context() as patched:
            patched.setattr(other_workers.OtherWorkers, "read", late)
            assert (await both.second.run(step(PROMPT))).usage.delivered == {}, "given up: the fetch took too long"
            go.set()
        await eventually(both.second.copies_ended)

        async def delivered() -> Mapping[Tier, int]:
            await both.second.clear()
            answer = await both.second.run(step(PROMPT))
            assert answer.tokens == first.tokens
            return answer.usage.delivered

        assert await delivered() == {}, "by what was measured, to compute is faster"
        with monkeypatch.context() as patched:
            patched.setattr(lane_speed, "TRIAL_AFTER_S", 0.0)
            assert await delivered() == {Tier.SIBLING: 64}, "a trial"
        assert await delivered() == {Tier.SIBLING: 64}, "and now it is known that the owner is fast"


@pytest.mark.usefixtures("prefill")
async def test_no_second_copy_of_what_a_sibling_holds(llama: Path) -> None:
    quiet = settings(llama, cache={"write_through": False})
    async with node(quiet) as both:
        first = await both.first.run(step(PROMPT))
        await both.first.run(step([5] * 170, workflow_id="other"))  # takes all of the GPU
        await both.tell()
        second = await both.second.run(step(PROMPT))
        assert second.tokens == first.tokens
        await both.second.run(step([6] * 170, workflow_id="other"))
        assert (await both.second.decisions())["second_copy_skipped"] >= 3
        again = await both.second.run(step(PROMPT))
        assert again.tokens == first.tokens
        assert again.usage.delivered.get(Tier.SIBLING, 0) >= 48


@pytest.mark.slow
@pytest.mark.usefixtures("prefill")
async def test_blocks_of_a_worker_that_was_killed_are_still_read_and_never_wrong(llama: Path) -> None:
    async with host_store(ARENA) as (arena, address):
        arguments = [sys.executable, "-c", WORKER, settings(llama).model_dump_json(), address]
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        blocks = BlockMap(SHARED)
        try:
            assert process.stdout is not None
            worker = (await process.stdout.readline()).decode().strip()
            async with connect(worker) as channel:
                stubs = worker_pb2_grpc.WorkerServiceStub(channel), store_pb2_grpc.StoreServiceStub(channel)
                first = await Rig(None, None, channel, *stubs).run(step(PROMPT))  # type: ignore[arg-type]
            await stored(arena, 4)
        finally:
            process.kill()
            await process.wait()
        view = ArenaView(arena.path)
        headers = list(view.regions()["w"].headers())
        blocks.replace(("w", "1"), "node", [(header.label.key, (slot + 1) << 3 | 2) for slot, header in headers])
        view.close()
        async with serving(settings(llama), "second", host_store=At(address), blocks=blocks, node_id="node") as second:
            answer = await second.run(step(PROMPT))
            assert answer.tokens == first.tokens
            assert answer.usage.delivered == {Tier.SIBLING: 64}
