"""Workers of one node that use each other's blocks: read from the arena, without a lock or a call."""

import asyncio
import sys
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import SHARED, Residency
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import store_pb2_grpc, worker_pb2_grpc
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.block_map import BlockMap
from tests.gpu_worker.sibling_rig import PROMPT, node, settings
from tests.gpu_worker.test_restored_worker import ARENA, POOLS, WORKER, At
from tests.gpu_worker.worker_rig import Rig, flip, host_store, serving, step, stored
from tests.polling import eventually


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
        in_host = frozenset({Tier.HOST})
        blocks.replace(("w", "1"), "node", [(header.label.key, Residency(in_host, slot).pack()) for slot, header in headers])
        view.close()
        async with serving(settings(llama), "second", host_store=At(address), blocks=blocks, node_id="node") as second:
            answer = await second.run(step(PROMPT))
            assert answer.tokens == first.tokens
            assert answer.usage.delivered == {Tier.SIBLING: 64}
