"""Output that goes straight from real workers to a client, and what that must not change."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from pbkv_cluster.client import AsyncClient, AsyncWorkflow, Finished, StepEvent, Tokens
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.output import Output
from tests.gateway.real_workers import Real
from tests.gateway.rig import PATIENCE_S, Rig
from tests.gateway.straight import LONG, PROMPT, cluster, connected, direct_steps
from tests.polling import eventually


def held(engine: Engine) -> tuple[int, int, int]:
    """Steps that run and wait, and the blocks that they hold."""
    return len(engine.scheduler.running), engine.scheduler.waiting, engine.cache.locked_blocks(Tier.GPU)


async def all_is_free(rig: Rig, *workers: Real) -> None:
    async def free() -> bool:
        found = [await worker.server.thread.call(held) for worker in workers]
        return found == [(0, 0, 0)] * len(workers) and not (await rig.status()).running_steps

    await eventually(free, PATIENCE_S)


async def test_what_comes_straight_is_what_would_come_through_the_gateway(small_model: Path) -> None:
    async with (
        cluster(small_model) as (rig, _, _),
        AsyncClient(rig.address) as client,
        AsyncClient(rig.address, direct=False) as relayed,
    ):
        one, other = await connected(rig, client), await relayed.start_workflow()
        before = await direct_steps(rig)
        steps = [await workflow.run(**LONG, top_logprobs=2) for workflow in (one, other, one)]
        assert await direct_steps(rig) == before + 2
        straight, through, again = steps
        assert straight.token_ids == through.token_ids == again.token_ids
        assert len(straight.token_ids) == 300
        assert straight.text == through.text
        assert straight.logprobs == through.logprobs
        assert again.step == straight.step + 1
        for step in steps:
            assert (step.usage.prompt_tokens, step.usage.generated_tokens, step.usage.retries) == (len(PROMPT), 300, 0)
            assert step.usage.available_tokens > 0
            assert 0 < step.usage.ttft_s < step.usage.total_s
        totals = (await rig.status()).totals
        assert totals.generated_tokens >= 900


async def test_a_client_out_of_reach_of_the_workers_is_served_by_the_gateway(small_model: Path) -> None:
    async with cluster(small_model) as (rig, _, wires), AsyncClient(rig.address) as client:
        wires[0].cut()
        workflow = await client.start_workflow()
        for _ in range(5):
            assert len((await workflow.run(**LONG)).token_ids) == 300
        assert await direct_steps(rig) == 0


async def test_a_cut_wire_is_made_good_by_the_gateway(small_model: Path) -> None:
    async with cluster(small_model) as (rig, (worker,), wires), AsyncClient(rig.address) as client:
        workflow = await connected(rig, client)
        whole = await workflow.run(**LONG)
        packed, text, finished = list[int](), "", list[Finished]()
        async for event in workflow.stream(**LONG):
            if isinstance(event, Tokens):
                packed += event.token_ids
                text += event.text
                if len(packed) >= 20 > len(packed) - len(event.token_ids):
                    wires[0].cut()
            elif isinstance(event, Finished):
                finished.append(event)
        assert (tuple(packed), text) == (whole.token_ids, whole.text)
        assert [each.usage.generated_tokens for each in finished] == [300]
        await all_is_free(rig, worker)
        assert (await rig.status()).decisions[Reason.STEP_RESUMED] == 1


def hold_after(engine: Engine, steps: int, go_on: threading.Event) -> None:
    """Has the engine stop after so many more steps until `go_on` is set. Called on its thread."""
    step, left = engine.step, steps

    def held_step(wait_s: float | None = None) -> list[Output]:
        nonlocal left
        if not left:
            go_on.wait()
        left = max(left - 1, 0)
        return step(wait_s)

    engine.step = held_step  # type: ignore[method-assign]


async def test_a_lost_worker_is_made_good_by_another(small_model: Path) -> None:
    async with cluster(small_model, "a", "b") as (rig, workers, _), AsyncClient(rig.address) as client:
        workflow = await connected(rig, client)
        whole = await workflow.run(**LONG)
        (lost,) = (each for each in workers if each.name == whole.usage.worker_id)
        (other,) = (each for each in workers if each is not lost)
        go_on = threading.Event()
        await lost.server.thread.call(lambda engine: hold_after(engine, 40, go_on))
        packed, text, finished, stopping = list[int](), "", list[Finished](), list[asyncio.Task[None]]()
        try:
            async for event in workflow.stream(**LONG):
                if isinstance(event, Tokens):
                    packed += event.token_ids
                    text += event.text
                    if len(packed) >= 20 and not stopping:
                        stopping.append(asyncio.create_task(lost.server.stop()))  # it ends when its engine does
                elif isinstance(event, Finished):
                    finished.append(event)
        finally:
            go_on.set()
            await asyncio.gather(*stopping)
        assert (tuple(packed), text) == (whole.token_ids, whole.text)
        assert [(each.usage.worker_id, each.usage.generated_tokens) for each in finished] == [(other.name, 300)]
        assert (await rig.status()).decisions[Reason.STEP_RESUMED] == 1
        await all_is_free(rig, other)


async def begun(workflow: AsyncWorkflow) -> AsyncGenerator[StepEvent, None]:
    """The stream of a long step that has generated something."""
    stream = workflow.stream(**LONG)
    while not isinstance(await anext(stream), Tokens):
        pass
    return stream


async def test_leaving_a_step_frees_what_it_holds(small_model: Path) -> None:
    async with cluster(small_model) as (rig, (worker,), _), AsyncClient(rig.address) as client:
        workflow = await connected(rig, client)
        stream = await begun(workflow)
        await stream.aclose()
        await all_is_free(rig, worker)
        assert len((await workflow.run(**LONG)).token_ids) == 300


async def test_the_end_of_a_workflow_ends_its_steps(small_model: Path) -> None:
    async with cluster(small_model) as (rig, (worker,), _), AsyncClient(rig.address) as client:
        workflow = await connected(rig, client)
        stream = await begun(workflow)
        await workflow.end()
        last = [event async for event in stream][-1]
        assert isinstance(last, Finished)
        assert last.reason.value in ("cancelled", "length")
        await all_is_free(rig, worker)


async def test_a_limit_counts_a_step_until_its_end_and_no_longer(small_model: Path) -> None:
    async with cluster(small_model, workflow_steps=1) as (rig, _, _), AsyncClient(rig.address) as client:
        workflow = await connected(rig, client)
        before = await direct_steps(rig)
        for number in range(30):  # the next one is never there before the end of the one before it
            assert (await workflow.run(agent="a", prompt=f"{PROMPT}{number}", max_tokens=2)).usage.generated_tokens == 2
        assert await direct_steps(rig) == before + 30
        running_step = asyncio.create_task(workflow.run(**LONG))
        await rig.sees(lambda status: status.running_steps == 1, "the step")
        with pytest.raises(ResourceExhausted, match="in flight"):
            await workflow.run(agent="a", prompt=PROMPT, max_tokens=1)
        assert len((await running_step).token_ids) == 300


async def test_events_keep_their_order(small_model: Path) -> None:
    async with cluster(small_model) as (rig, _, _), AsyncClient(rig.address) as client:
        predictor = await rig.add_predictor()
        workflow = await connected(rig, client)
        for _ in range(10):
            await workflow.run(agent="a", prompt=PROMPT, max_tokens=3)
            async with workflow.tool("search"):
                pass
        await workflow.end()

        def kinds() -> list[EventKind]:
            wanted = (EventKind.STEP_STARTED, EventKind.STEP_FINISHED, EventKind.TOOL_STARTED, EventKind.WORKFLOW_ENDED)
            return [event.kind for event in predictor.events if event.workflow == workflow.id and event.kind in wanted]

        await eventually(lambda: EventKind.WORKFLOW_ENDED in kinds(), PATIENCE_S)
        turn = [EventKind.STEP_STARTED, EventKind.STEP_FINISHED, EventKind.TOOL_STARTED]
        assert kinds()[-31:] == [*turn * 10, EventKind.WORKFLOW_ENDED]
