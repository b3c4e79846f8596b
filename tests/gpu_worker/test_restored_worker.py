"""Workers that end, in good order or not, and find their blocks again in the arena of their node."""

import asyncio
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import SHARED
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.gpu_worker.kv import arena_region
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.services import HOST_STORE
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, worker_pb2_grpc
from pbkv_cluster.store.arena.arena import Region
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.page_touch import PIECE_BYTES
from pbkv_cluster.store.arena.region_lock import try_lock
from pbkv_cluster.store.block_map import BlockMap
from tests.gpu_worker.worker_rig import Rig, config, flip, host_store, serving, step, stored
from tests.polling import eventually

ARENA = 16 << 20
PROMPT = list(range(10, 80))  # four full blocks and some tokens
POOLS = {"gpu_blocks": 12, "host_blocks": 16}

WORKER = """
import asyncio, sys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.gpu_worker.server import WorkerServer
from tests.gpu_worker.test_restored_worker import At

async def main():
    worker = WorkerServer(Config.model_validate_json(sys.argv[1]), "w", SystemClock(), host_store=At(sys.argv[2]))
    print((await worker.start("127.0.0.1")).address, flush=True)
    await worker.wait()

asyncio.run(main())
"""


class At:
    """Finds the host store at one address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def service_address(self, name: str) -> str | None:
        return self._address if name == HOST_STORE else None


@pytest.fixture
def llama(model_dirs: Mapping[str, Path]) -> Path:
    return model_dirs["llama"]


def settings(model: Path, write_through: bool = True, **engine: Any) -> Config:
    return config(model, engine={**POOLS, **engine}, cache={"write_through": write_through, "policy": "lru"})


@pytest.mark.slow
async def test_a_killed_worker_serves_its_first_repeated_prompt_from_the_arena(llama: Path) -> None:
    async with host_store(ARENA) as (arena, address):
        arguments = [sys.executable, "-c", WORKER, settings(llama).model_dump_json(), address]
        answers = []
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
            try:
                assert process.stdout is not None
                worker = (await process.stdout.readline()).decode().strip()
                async with connect(worker) as channel:
                    stubs = worker_pb2_grpc.WorkerServiceStub(channel), store_pb2_grpc.StoreServiceStub(channel)
                    rig = Rig(None, None, channel, *stubs)  # type: ignore[arg-type]
                    answers.append(await rig.run(step(PROMPT)))
                await stored(arena, 4)
            finally:
                process.kill()
                await process.wait()
    first, again = answers
    assert first.usage.delivered == {}
    assert again.usage.delivered == {Tier.HOST: 64}
    assert again.tokens == first.tokens


async def test_what_was_demoted_is_found_again_without_write_through(llama: Path) -> None:
    quiet = settings(llama, write_through=False)
    async with host_store(ARENA) as (arena, address):
        async with serving(quiet, host_store=At(address)) as rig:
            first = await rig.run(step(PROMPT))
            for token in (5, 6):  # each takes all of the GPU
                await rig.run(step([token] * 170, workflow_id="other"))
            held = (await rig.stat(Tier.HOST)).used_blocks
            await stored(arena, held)
        async with serving(quiet, host_store=At(address)) as rig:
            assert 4 <= (await rig.stat(Tier.HOST)).used_blocks <= held  # without those whose first blocks were on the GPU
            again = await rig.run(step(PROMPT))
            assert again.usage.delivered == {Tier.HOST: 64}
            assert again.tokens == first.tokens


async def test_what_follows_a_lost_block_is_loaded_when_that_has_been_computed(llama: Path) -> None:
    quiet = settings(llama, write_through=False, prefill_chunk_tokens=16)
    prompt = [*range(10, 80), *range(10, 69)]  # eight full blocks and a token
    async with host_store(ARENA) as (arena, address):
        async with serving(quiet, host_store=At(address)) as rig:
            first = await rig.run(step(prompt))
            await rig.run(step([5] * 100, workflow_id="other"))
            held = (await rig.stat(Tier.HOST)).used_blocks
            assert 0 < held < 8, "only its end had to leave the GPU"
            await stored(arena, held)
        async with serving(quiet, host_store=At(address)) as rig:
            assert (await rig.stat(Tier.HOST)).used_blocks == 0
            again = await rig.run(step(prompt))
            assert again.tokens == first.tokens
            assert again.usage.delivered == {Tier.HOST: 16 * held}
            assert again.usage.computed_tokens == first.usage.computed_tokens - 16 * held


@pytest.mark.parametrize("gpu_blocks", [11, 12, 13])
async def test_a_host_tier_without_a_configured_size_is_found_again_by_another_gpu_tier(llama: Path, gpu_blocks: int) -> None:
    async with host_store(ARENA) as (arena, address):
        async with serving(settings(llama, host_blocks=-1), host_store=At(address)) as rig:
            await rig.run(step(PROMPT))
            await stored(arena, 4)
        restarted = settings(llama, gpu_blocks=gpu_blocks, host_blocks=-1)
        async with serving(restarted, host_store=At(address)) as rig:
            assert rig.facts.host_blocks == 2 * 12
            assert (await rig.run(step(PROMPT))).usage.delivered == {Tier.HOST: 64}


async def test_a_worker_waits_for_its_last_process_to_let_go_of_the_region(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_region, "PAUSE_S", 0.01)
    async with host_store(ARENA) as (arena, address):
        region = arena.acquire("w", mmap.PAGESIZE)
        last = os.open(arena.path, os.O_RDWR)
        assert try_lock(last, region.offset, region.size)
        acquire, refused = arena.acquire, 0

        def observed(owner: str, size: int, may_be_less: bool = False) -> Region:
            nonlocal refused
            try:
                return acquire(owner, size, may_be_less)
            except Unavailable:
                refused += 1
                if refused == 2:
                    os.close(last)
                raise

        monkeypatch.setattr(arena, "acquire", observed)
        async with serving(settings(llama), host_store=At(address)) as rig:
            assert refused == 2
            assert rig.worker.problems == ()
            assert arena.regions()["w"].size > region.size


@pytest.mark.parametrize("write_through", [True, False])
async def test_cleared_blocks_do_not_come_back(llama: Path, write_through: bool) -> None:
    cleared = settings(llama, write_through, host_blocks=10)  # fewer than are demoted: some have left the host, too
    async with host_store(ARENA) as (arena, address):
        async with serving(cleared, host_store=At(address)) as rig:
            await rig.run(step(PROMPT))
            for token in (5, 6):
                await rig.run(step([token] * 170, workflow_id="other"))
            await stored(arena, 4)
            await rig.store.Clear(store_pb2.ClearRequest())
        async with serving(cleared, host_store=At(address)) as rig:
            assert (await rig.stat(Tier.HOST)).used_blocks == 0
            assert (await rig.run(step(PROMPT))).usage.delivered == {}


async def test_another_tenant_and_another_model_find_nothing_and_damage_is_computed_again(
    llama: Path, model_dirs: Mapping[str, Path]
) -> None:
    async with host_store(ARENA) as (arena, address):
        async with serving(settings(llama), host_store=At(address)) as rig:
            first = await rig.run(step(PROMPT, tenant="acme"))
            await stored(arena, 4)
            layout = RegionLayout(POOLS["host_blocks"], rig.facts.block_bytes)
        async with serving(settings(llama), host_store=At(address)) as rig:
            assert (await rig.run(step(PROMPT, tenant="other"))).usage.delivered == {}
            assert (await rig.run(step(PROMPT, tenant="acme"))).usage.delivered == {Tier.HOST: 64}
        flip(arena, layout)
        async with serving(settings(llama), host_store=At(address)) as rig:
            again = await rig.run(step(PROMPT, tenant="acme"))
            assert (again.tokens, again.usage.delivered) == (first.tokens, {})
            decisions = await rig.decisions()
            assert decisions["load_failed"] == decisions["drop_spoiled"] == 4
        async with serving(settings(model_dirs["qwen2"]), host_store=At(address)) as rig:
            assert (await rig.run(step(PROMPT, tenant="acme"))).usage.delivered == {}


async def test_without_a_gpu_the_region_s_memory_is_taken_as_it_is_used(llama: Path) -> None:
    blocks = 5 * PIECE_BYTES // (16 << 10)
    pools = settings(llama, host_blocks=blocks)
    async with host_store(8 * PIECE_BYTES) as (_, address), serving(pools, host_store=At(address)) as rig:
        tier = await rig.stat(Tier.HOST)
        assert tier.capacity_blocks == blocks
        assert tier.block_bytes * tier.ready_blocks <= 2 * PIECE_BYTES  # the headers' pieces
        for token in range(5, 12):
            await rig.run(step([token] * 170, workflow_id=str(token)))
        tier = await rig.stat(Tier.HOST)
        assert 0 < tier.used_blocks <= tier.ready_blocks < blocks
        assert rig.worker.problems == ()


async def test_what_was_fetched_from_a_sibling_is_found_again_with_all_that_follows_it(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the sibling; and also what was only prefetched, without another call to the idle worker."""
    monkeypatch.setattr(PrefillRate, "seconds", lambda self, tokens: 100.0 * tokens)
    blocks, longer, other = BlockMap(SHARED), [*PROMPT[:64], *range(100, 130)], [*range(200, 233)]
    async with host_store(ARENA) as (arena, address):

        async def in_region(count: int) -> None:
            view = ArenaView(arena.path)
            await eventually(lambda: "w" in view.regions() and len(list(view.regions()["w"].headers())) >= count)
            view.close()

        async with serving(settings(llama), "sibling", host_store=At(address)) as sibling:
            await sibling.run(step(PROMPT))
            await sibling.run(step(other, workflow_id="other"))
            blocks.replace(("sibling", "1"), "node", await sibling.held())
            async with serving(settings(llama), host_store=At(address), blocks=blocks, node_id="node") as rig:
                first = await rig.run(step(longer))
                assert first.usage.delivered == {Tier.SIBLING: 64}
                await in_region(6)
                assert await rig.prefetch(other) == (32, 32)
                await in_region(8)
        async with serving(settings(llama), host_store=At(address)) as rig:
            again = await rig.run(step(longer))
            assert (again.tokens, again.usage.delivered) == (first.tokens, {Tier.HOST: 80})
            assert (await rig.run(step(other, workflow_id="other"))).usage.delivered == {Tier.HOST: 32}
