"""Workers with a disk tier: blocks go to the host and on to the disk, come back, and outlive the process."""

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cache.sequence import fetch
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, worker_pb2_grpc
from pbkv_cluster.store.arena.layout import SLOT_BYTES, RegionLayout, SlotHeader
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.disk.write_behind import WriteBehind
from tests.gpu_worker.worker_rig import PATIENCE_S, Rig, config, serving, step
from tests.polling import eventually

PROMPT = list(range(10, 80))  # four full blocks and some tokens
SIZE = 1 << 20

WORKER = """
import asyncio, sys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.cache.sequence import fetch
from pbkv_cluster.core.config import Config
from pbkv_cluster.gpu_worker.server import WorkerServer

async def main():
    worker = WorkerServer(Config.model_validate_json(sys.argv[1]), "w", SystemClock())
    print((await worker.start("127.0.0.1")).address, flush=True)
    await worker.wait()

asyncio.run(main())
"""


def settings(model: Path, folder: Path, write_through: bool = True, **engine: Any) -> Config:
    pools = {"gpu_blocks": 12, "host_blocks": 4, "disk_path": str(folder), "disk_bytes": SIZE}
    return config(model, engine={**pools, **engine}, cache={"write_through": write_through, "policy": "lru"})


def file_of(folder: Path) -> Path:
    return folder / "pbkv-w.blocks"


async def stored(folder: Path, block_bytes: int, blocks: int) -> None:
    """Waits until the file of the worker holds some blocks."""
    layout = RegionLayout(RegionLayout(0, block_bytes).slots_in(SIZE), block_bytes)

    def holds() -> bool:
        with file_of(folder).open("rb") as file:
            packed = os.pread(file.fileno(), layout.slots * SLOT_BYTES, layout.headers)
        headers = [packed[start : start + SLOT_BYTES] for start in range(0, len(packed), SLOT_BYTES)]
        return sum(SlotHeader.unpack(header[8:]) is not None for header in headers) >= blocks

    await eventually(holds)


async def fill(rig: Rig) -> None:
    """Other prompts take all of the GPU and of the host."""
    for token in (5, 6):
        await rig.run(step([token] * 170, workflow_id="other"))


@pytest.mark.slow
async def test_a_killed_worker_serves_its_first_repeated_prompt_from_the_disk(llama: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WORKER, settings(llama, tmp_path).model_dump_json()]
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
                await stored(tmp_path, (await rig.stat(Tier.DISK)).block_bytes, 4)
        finally:
            process.kill()
            await process.wait()
    first, again = answers
    assert first.usage.delivered == {}
    assert again.usage.delivered == {Tier.DISK: 64}
    assert again.tokens == first.tokens


@pytest.mark.parametrize("write_through", [False, True])
async def test_what_leaves_the_host_comes_back_from_the_disk(llama: Path, tmp_path: Path, write_through: bool) -> None:
    async with serving(settings(llama, tmp_path, write_through)) as rig:
        first = await rig.run(step(PROMPT))
        await fill(rig)
        again = await rig.run(step(PROMPT))
        assert again.tokens == first.tokens
        assert again.usage.delivered[Tier.DISK] > 0
        assert again.delivered == 64
        status = (await rig.status()).store
        (disk,) = (tier for tier in status.tiers if tier.capacity_blocks > 12)
        assert disk.ready_blocks == disk.capacity_blocks == RegionLayout(0, rig.facts.block_bytes).slots_in(SIZE)
        assert disk.used_blocks > 0
        assert rig.worker.problems == ()


async def test_what_a_disk_does_not_bring_in_time_is_computed_and_nothing_else_waits_for_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun, reads, read = threading.Event(), threading.Event(), list[int](), WriteBehind.read

    def late(self: WriteBehind, slot: int, target: Bytes) -> ReadResult:
        reads.append(slot)
        begun.set()
        go.wait(600)
        return read(self, slot, target)

    async with serving(settings(llama, tmp_path)) as rig:
        first = await rig.run(step(PROMPT))
        await fill(rig)
        await eventually(rig.copies_ended)
        monkeypatch.setattr(WriteBehind, "read", late)
        monkeypatch.setattr(fetch, "PATIENCE_MIN_S", 2.0)
        monkeypatch.setattr(fetch, "PATIENCE_MAX_S", 2.0)
        try:
            waits = asyncio.create_task(rig.run(step(PROMPT, workflow_id="waits")))
            await eventually(begun.is_set)
            assert (await rig.run(step([7] * 20, workflow_id="short"))).tokens
            assert not waits.done()
            again = await waits
            assert again.tokens == first.tokens
            assert Tier.DISK not in again.usage.delivered
            assert (await rig.decisions())["load_late"] > 0
            assert (await rig.stat(Tier.DISK)).locked_blocks == 0
        finally:
            go.set()
        await eventually(rig.copies_ended)
        assert len(reads) == 1, "the rest is not read any more"
        assert (await rig.run(step(PROMPT))).tokens == first.tokens
        await rig.worker.thread.call(lambda engine: engine.cache.check_integrity())


async def test_damage_another_tenant_and_another_model_are_computed(
    llama: Path, model_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    async with serving(settings(llama, tmp_path)) as rig:
        first = await rig.run(step(PROMPT, tenant="acme"))
        size = rig.facts.block_bytes
    layout = RegionLayout(RegionLayout(0, size).slots_in(SIZE), size)
    async with serving(settings(llama, tmp_path)) as rig:
        assert (await rig.run(step(PROMPT, tenant="other"))).usage.delivered == {}
        assert (await rig.run(step(PROMPT, tenant="acme"))).usage.delivered == {Tier.DISK: 64}
    with file_of(tmp_path).open("r+b") as file:
        for slot in range(layout.slots):
            at = layout.payloads + slot * size + 100
            (byte,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
    async with serving(settings(llama, tmp_path)) as rig:
        again = await rig.run(step(PROMPT, tenant="acme"))
        assert (again.tokens, again.usage.delivered) == (first.tokens, {})
        decisions = await rig.decisions()
        assert decisions["load_failed"] == decisions["drop_spoiled"] == 4
    async with serving(settings(model_dirs["qwen2"], tmp_path)) as rig:
        assert (await rig.run(step(PROMPT, tenant="acme"))).usage.delivered == {}


def unreadable(*_: Any) -> bytes:
    raise OSError(errno.EIO, "input/output error")


async def test_a_check_finds_damage_on_disk(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings(llama, tmp_path), worker_id="w") as rig:
        await rig.run(step(PROMPT))
        await fill(rig)
        held = {tier: (await rig.stat(tier)).used_blocks for tier in (Tier.HOST, Tier.DISK)}
        await stored(tmp_path, rig.facts.block_bytes, held[Tier.DISK])
        sound = await rig.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)
        assert (sound.checked_blocks, sound.damaged_blocks, sound.changed_blocks) == (sum(held.values()), 0, 0)
        layout = RegionLayout(RegionLayout(0, rig.facts.block_bytes).slots_in(SIZE), rig.facts.block_bytes)
        with file_of(tmp_path).open("r+b") as file:
            os.pwrite(file.fileno(), b"\xff" * 64, layout.payloads)
        found = await rig.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)
        assert (found.checked_blocks, found.damaged_blocks) == (sum(held.values()), 1)
        monkeypatch.setattr(os, "pread", unreadable)
        found = await rig.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)
        assert (found.checked_blocks, found.damaged_blocks) == (sum(held.values()), held[Tier.DISK])


async def test_cleared_blocks_do_not_come_back(llama: Path, tmp_path: Path) -> None:
    async with serving(settings(llama, tmp_path)) as rig:
        await rig.run(step(PROMPT))
        await fill(rig)
        assert await rig.clear()
    async with serving(settings(llama, tmp_path)) as rig:
        assert (await rig.stat(Tier.DISK)).used_blocks == 0
        assert (await rig.run(step(PROMPT))).usage.delivered == {}


async def test_a_disk_tier_without_room_for_a_block_keeps_the_worker_from_starting(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"engine\.disk_bytes: 100 bytes have no room for a block of"):
        async with serving(settings(llama, tmp_path, disk_bytes=100)):
            pass
