"""Blocks of another node and of the disk come to this worker's arena before the step that reads them is admitted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount, PrefetchSource
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2
from tests.gpu_worker.test_peer_blocks import nodes
from tests.gpu_worker.worker_rig import Answer, Rig, config, packed, serving, step
from tests.polling import eventually

PROMPT = list(range(10, 80))  # four full blocks and some tokens
BUSY = [5] * 20


@pytest.fixture(autouse=True)
def _slow_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that everything that is copied pays."""
    monkeypatch.setattr(PrefillRate, "seconds", lambda self, tokens: tokens * 100.0)


def settings(model: Path, **engine: Any) -> Config:
    pools = {"gpu_blocks": 12, "host_blocks": 16, "max_running": 1, "order": "arrival"}
    return config(model, engine={**pools, **engine}, cache={"write_through": True, "policy": "lru", "stage": True})


async def counted(rig: Rig, reason: PrefetchSource) -> PrefetchCount:
    return await rig.worker.thread.call(lambda engine: engine.cache.tiers.prefetched.staging.count(reason))


async def staged(rig: Rig, reason: PrefetchSource) -> None:
    """Waits until all that has been staged has arrived, or not."""

    async def is_over() -> bool:
        return await rig.worker.thread.call(_is_over)

    def _is_over(engine: Any) -> bool:
        engine.cache.poll()
        return not len(engine.cache.tiers.in_flight)

    await eventually(is_over)


async def queued(rig: Rig) -> Answer:
    """Runs the prompt, which has to wait until another step has decoded."""
    busy = asyncio.create_task(rig.run(step(BUSY, workflow_id="busy", request_id="busy", sampling={"max_tokens": 150})))

    async def runs() -> bool:
        return await rig.worker.thread.call(lambda engine: engine.decode_s > 0 and len(engine.scheduler.running) == 1)

    await eventually(runs)
    answer = await rig.run(step(PROMPT, request_id="waits"))
    await busy
    return answer


async def test_a_step_that_waits_finds_the_blocks_of_another_node_in_host_memory(llama: Path) -> None:
    async with nodes(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        second = await queued(both.second)
        assert second.tokens == first.tokens
        assert second.usage.delivered == {Tier.HOST: 64}
        assert await counted(both.second, PrefetchSource.QUEUE) == PrefetchCount(loaded=4, used=4)


async def test_damaged_blocks_of_another_node_are_cancelled_and_computed(llama: Path) -> None:
    async with nodes(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        both.flip()
        second = await queued(both.second)
        assert (second.tokens, second.delivered) == (first.tokens, 0)
        count = await counted(both.second, PrefetchSource.QUEUE)
        assert count.loaded == count.cancelled > 0
        assert (await both.second.decisions())["remote_damaged"] > 0


async def test_a_request_brings_to_host_memory_what_the_gpu_has_no_room_for(llama: Path) -> None:
    async with nodes(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        rig = both.second
        await rig.run(step([6] * 150, workflow_id="other"))  # active, and has most of the GPU
        prompt = types_pb2.Prompt(token_ids=packed(PROMPT))
        answer = await rig.store.Prefetch(store_pb2.PrefetchRequest(prompt=prompt))
        assert answer.loaded_tokens + answer.staged_tokens == 64
        assert answer.staged_tokens > 0
        await staged(rig, PrefetchSource.REQUEST)
        again = await rig.run(step(PROMPT))
        assert again.tokens == first.tokens
        assert again.usage.delivered == {Tier.GPU: answer.loaded_tokens, Tier.HOST: answer.staged_tokens}


async def test_a_step_that_waits_finds_the_blocks_of_the_disk_in_host_memory(llama: Path, tmp_path: Path) -> None:
    async with serving(settings(llama, disk_path=str(tmp_path), disk_bytes=1 << 20)) as rig:
        first = await rig.run(step(PROMPT))
        for token in (6, 7, 8):
            await rig.run(step([token] * 150, workflow_id="other"))
        await rig.retire("other")
        again = await queued(rig)
        assert again.tokens == first.tokens
        assert again.delivered == 64
        count = await counted(rig, PrefetchSource.QUEUE)
        assert count.loaded == count.used > 0
        assert again.usage.delivered.get(Tier.HOST, 0) >= count.used * 16
