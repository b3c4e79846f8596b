"""Nobody has more in flight than its limits allow, refusals say which limit and when to try again, and others go on."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import LimitsConfig
from pbkv_cluster.core.errors import LimitExceeded, NotFound
from pbkv_cluster.core.fairness.fair_room import has_fair_room
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.admission.limits import Limit
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import types_pb2
from pbkv_cluster.store.cluster_index import WorkflowEntry
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, read, refused, running, until

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def in_flight(rig: Rig, workflow: str, steps: int, **fields: Any) -> list[Any]:
    """Calls of steps that the worker has and does not answer."""
    before = len(rig.workers[0].requests)
    calls = [rig.submit(workflow, **fields) for _ in range(steps)]
    await until(lambda: len(rig.workers[0].requests) == before + steps, "the worker has the steps")
    return calls


@pytest.mark.parametrize("limits", [{"tenant_steps": 2}, {"workflow_steps": 2}], ids=str)
async def test_a_step_beyond_the_limit_is_refused_and_the_next_one_after_an_end_is_not(limits: dict[str, int]) -> None:
    (name,) = limits
    worker = ScriptedWorker("w0", stop_at=0)
    async with running(worker, limits=limits) as rig:
        busy, other = await rig.start_workflow(tenant="a"), await rig.start_workflow(tenant="b")
        calls = await in_flight(rig, busy, 2)
        with pytest.raises(aio.AioRpcError, match=rf"has 2 steps in flight already \(limits\.{name}\)") as caught:
            await rig.run(busy)
        assert caught.value.code() is EXHAUSTED
        error = from_rpc(caught.value)
        assert 0 < getattr(error, "retry_after_s", 0) <= 60
        calls += await in_flight(rig, other, 1)
        worker.go.set()
        for call in calls:
            await read(call)
        assert len((await rig.run(busy)).token_ids) == 4
        assert rig.gateway.submission.admission.refused == {Limit(f"limits.{name}"): 1}
        assert (await rig.status()).decisions["step_refused"] == 1


async def test_a_tenant_is_that_of_the_step_before_that_of_its_workflow() -> None:
    async with running(ScriptedWorker("w0", stop_at=0), limits={"tenant_steps": 1}) as rig:
        workflow = await rig.start_workflow(tenant="a")
        await in_flight(rig, workflow, 1)
        async with refused(EXHAUSTED, "tenant 'a' has 1 steps"):
            await rig.run(workflow)
        await in_flight(rig, workflow, 1, tenant="b")
        await in_flight(rig, await rig.start_workflow(), 1)
        async with refused(EXHAUSTED, "the tenant without a name has 1 steps"):
            await rig.run(await rig.start_workflow())


@pytest.mark.parametrize("limits", [{"tenant_queued_tokens": 50}, {"workflow_queued_tokens": 50}], ids=str)
async def test_prompts_count_until_their_steps_have_output(limits: dict[str, int]) -> None:
    (name,) = limits
    worker = ScriptedWorker("w0", stop_at=0)
    async with running(worker, limits=limits) as rig:
        workflow = await rig.start_workflow()
        longer, short = types_pb2.Prompt(text="x" * 60), types_pb2.Prompt(text="x" * 20)
        calls = await in_flight(rig, workflow, 1, prompt=longer)  # alone, it is let in
        async with refused(EXHAUSTED, f"{_who(name, workflow)} has 60 prompt tokens queued already (limits.{name} is 50)"):
            await rig.run(workflow, prompt=short)
        worker.stop_at = 1
        worker.go.set()
        for call in calls:
            await read(call)
        worker.go.clear()
        calls = await in_flight(rig, workflow, 1, prompt=longer)
        await worker.stopped.wait()
        worker.stop_at = 0
        calls += await in_flight(rig, workflow, 2, prompt=short)  # the first has output
        async with refused(EXHAUSTED, f"{_who(name, workflow)} has 40 prompt tokens queued already"):
            await rig.run(workflow, prompt=short)
        assert len(worker.requests) == 4, "what was refused has not reached the worker"
        worker.go.set()
        for call in calls:
            await read(call)


def _who(limit: str, workflow: str) -> str:
    return "the tenant without a name" if limit.startswith("tenant") else f"workflow {workflow!r}"


async def test_one_tenant_leaves_room_for_others_in_a_full_gateway() -> None:
    worker = ScriptedWorker("w0", stop_at=0)
    async with running(worker, max_steps=18) as rig:
        flood, other = await rig.start_workflow(tenant="flood"), await rig.start_workflow(tenant="other")
        calls = await in_flight(rig, flood, 16)
        for _ in range(20):
            async with refused(EXHAUSTED, "tenant 'flood' has 16 of 16 steps in flight, and leaves room to others"):
                await rig.run(flood)
        worker.stop_at = -1
        assert len((await rig.run(other)).token_ids) == 4
        worker.go.set()
        for call in calls:
            await read(call)


async def test_a_flood_of_unknown_workflows_leaves_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = list[str](), asyncio.Event()

    async def look_up(workflow_id: str) -> WorkflowEntry:
        asked.append(workflow_id)
        await go.wait()
        raise NotFound(f"workflow {workflow_id!r} is not open")

    async with running(ScriptedWorker("w0"), max_steps=18) as rig:
        other = await rig.start_workflow(tenant="other")
        monkeypatch.setattr(rig.gateway.lifecycle.entries, "find", look_up)
        calls = [asyncio.ensure_future(rig.run(f"unknown {number}", tenant="flood")) for number in range(40)]
        await until(lambda: sum(call.done() for call in calls) == 24, "those for which there is no room are refused")
        assert len(asked) == 16
        assert len((await rig.run(other)).token_ids) == 4
        go.set()
        await asyncio.wait(calls)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "output", "end"]),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["v", "w"]),
        st.integers(0, 60),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_accounts_are_exact_and_never_over_their_limits(operations: list[tuple[str, str, str, int]]) -> None:
    config = LimitsConfig(tenant_steps=4, tenant_queued_tokens=100, workflow_steps=6, workflow_queued_tokens=150)
    clock = ManualClock()
    admission = Admission(10, 1 << 20, config, Decisions(), clock)
    alive: list[tuple[Step, str, str]] = []
    queued: dict[Step, int] = {}
    waits = list[float | None]()
    for operation, tenant, workflow, amount in operations:
        clock.advance(0.5)
        if operation == "begin":
            step = Step(clock.now(), admission.release)
            try:
                admission.admit(step, 1000)
                admission.charge(step, tenant, workflow)
                admission.queue(step, amount)
            except LimitExceeded as error:
                waits.append(error.retry_after_s)
                step.fail()
            else:
                alive.append((step, tenant, workflow))
                queued[step] = amount
        elif alive:
            at = amount % len(alive)
            step = alive[at][0]
            if operation == "output":
                admission.has_output(step)
                queued[step] = 0
            else:
                del alive[at], queued[step]
                step.cancel()
        assert len(admission) == len(alive) <= 10
        for number, (most, tokens) in enumerate([(4, 100), (6, 150)], start=1):
            for name in {each[number] for each in alive}:
                own = [each[0] for each in alive if each[number] == name]
                assert len(own) <= most
                assert sum(map(queued.__getitem__, own)) <= max(tokens, *map(queued.__getitem__, own))
    assert all(wait is not None and 0 < wait <= 60 for wait in waits)
    for step, _, _ in alive:
        step.cancel()
    assert len(admission) == 0
    fresh = Step(clock.now(), admission.release)
    admission.admit(fresh, 1000)
    admission.charge(fresh, "a", "v")  # nothing is left of those that have ended
    admission.queue(fresh, 1_000_000)


def test_the_time_to_retry_follows_from_how_long_steps_take() -> None:
    clock = ManualClock()
    admission = Admission(100, 1 << 20, LimitsConfig(tenant_steps=5), Decisions(), clock)

    def begin() -> Step:
        step = Step(clock.now(), admission.release)
        admission.admit(step, 1)
        admission.charge(step, "a", "w")
        return step

    steps = [begin() for _ in range(5)]
    clock.advance(20.0)
    steps[0].cancel()
    begin()
    with pytest.raises(LimitExceeded) as caught:
        begin()
    assert caught.value.retry_after_s == pytest.approx(20.0 / 5)  # five end within twenty seconds


@given(st.integers(1, 500), st.integers(1, 5))
def test_who_holds_nothing_finds_room_however_many_flood_a_queue(capacity: int, tenants: int) -> None:
    held = [0] * tenants
    while any(has_fair_room(each, sum(held), capacity) for each in held):
        for tenant in range(tenants):
            held[tenant] += has_fair_room(held[tenant], sum(held), capacity)
    assert sum(held) <= capacity
    assert has_fair_room(0, sum(held), capacity) or capacity < 1 + 8 * tenants
    assert tenants > 1 or held[0] >= capacity * 8 // 9


def test_a_step_that_is_read_again_counts_once() -> None:
    admission = Admission(10, 1000, LimitsConfig(tenant_steps=1, tenant_queued_tokens=50), Decisions(), ManualClock())
    step = Step(0.0, lambda step: None)
    admission.admit(step, 10)
    for _ in range(2):
        admission.charge(step, "a", "w")
        admission.queue(step, 40)
    admission.release(step)
    other = Step(0.0, lambda step: None)
    admission.admit(other, 10)
    admission.charge(other, "a", "w")
    admission.queue(other, 50)
