"""Blocks of another worker that come late, or more slowly than they are computed."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from pbkv_cluster.cache.sequence import fetch
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.lanes import lane_speed
from tests.gpu_worker.conftest import Prefill
from tests.gpu_worker.sibling_rig import PROMPT, hold_reads, node, settings
from tests.gpu_worker.worker_rig import step
from tests.polling import eventually


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
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        go = hold_reads(monkeypatch)
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
    go = hold_reads(monkeypatch)
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
    async with node(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        with monkeypatch.context() as patched:
            go = hold_reads(patched)
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
