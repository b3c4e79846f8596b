"""Two gateways of one cluster: who holds a workflow, calls at the other one, and what happens when the holder goes."""

import asyncio
from pathlib import Path

import grpc
import pytest

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import NotFound
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.step_events import Accepted, Tokens
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.gateway.workflow.gone_gateways import GoneGateways
from pbkv_cluster.predictor_service.events.open_workflows import OpenWorkflows as PredictorWorkflows
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from tests.gateway.pair import Pair, pair
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.gateway.rig import Answer, read, refused, until
from tests.store.redis_connection.proxy import proxy_of
from tests.store.redis_connection.servers import serving

WHOLE = answer_tokens(types_pb2.Sampling(max_tokens=8, seed=5))
EIGHT = types_pb2.Sampling(max_tokens=8, seed=5)


async def events_of(both: Pair, workflow: str, last: EventKind) -> list[tuple[EventKind, int]]:
    """Kind and step of the events of a workflow in the order in which the predictor takes them."""
    await until(lambda: any(event.kind is last for event in both.predictor.of(workflow)), f"{last} has arrived")
    events = both.predictor.of(workflow)
    assert [event.sequence for event in events] == sorted({event.sequence for event in events}), "in order, each once"
    return [(event.kind, event.step) for event in events if event.kind is not EventKind.STEP_PLACED]


async def test_a_workflow_is_continued_at_either_gateway() -> None:
    worker = ScriptedWorker("w0")
    async with pair(worker) as both:
        workflow = await both.a.start(tenant="acme", workload="research")
        for number, side in enumerate([both.a, both.b] * 3):
            answer = await side.run(workflow)
            assert [accepted.step for accepted in answer.accepted] == [number]
            assert answer.token_ids == WHOLE[:4]
        started = workflow_pb2.ReportToolCallRequest.PHASE_STARTED
        await both.b.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(workflow_id=workflow, tool="t", phase=started))
        await both.b.end(workflow)
        steps = [(kind, n) for n in range(6) for kind in (EventKind.STEP_STARTED, EventKind.STEP_FINISHED)]
        found = await events_of(both, workflow, EventKind.WORKFLOW_ENDED)
        assert [each for each in found if "step" in each[0].value] == steps
        assert [kind for kind, _ in found[:1] + found[-2:]] == [
            EventKind.WORKFLOW_STARTED,
            EventKind.TOOL_STARTED,
            EventKind.WORKFLOW_ENDED,
        ]
        for side in (both.a, both.b):
            async with refused(grpc.StatusCode.NOT_FOUND):
                await side.run(workflow)
        assert worker.retired == [workflow]
        assert {request.tenant for request in worker.requests} == {"acme"}


async def test_a_workflow_that_is_opened_at_both_at_the_same_time_is_one() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        for number in range(8):
            await asyncio.gather(*(side.start(workflow_id=f"w{number}") for side in (both.a, both.b, both.a, both.b)))
            assert both.a.holds(f"w{number}") != both.b.holds(f"w{number}")
            answers = await asyncio.gather(*(side.run(f"w{number}") for side in (both.a, both.b)))
            assert sorted(answer.accepted[0].step for answer in answers) == [0, 1]


async def test_any_gateway_tells_of_the_whole_cluster() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        here, there = await both.a.start(workload="x"), await both.b.start(workload="x")
        for side, workflow, times in ((both.a, here, 2), (both.b, there, 3)):
            for _ in range(times):
                await side.run(workflow)
        for side in (both.a, both.b):
            status = await side.stub.GetClusterStatus(workflow_pb2.GetClusterStatusRequest())
            assert (status.open_workflows, status.totals.steps, status.totals.generated_tokens) == (2, 5, 20)
            assert status.decisions["route_only_worker"] == 5
            assert [(each.name, each.reachable, each.open_workflows) for each in status.gateways] == [
                ("gateway", True, 1),
                ("gateway-1", True, 1),
            ]
            async with InspectionClient(side.address) as inspection:
                listed = await inspection.workflows(workload="x")
                assert (listed.open, {each.workflow_id for each in listed.workflows}) == (2, {there, here})
                assert listed.workflows[0].idle_s <= listed.workflows[1].idle_s
                assert len((await inspection.workflows(limit=1)).workflows) == 1
                (agent,) = (await inspection.agents()).agents
                assert (agent.steps, agent.prompt_tokens) == (5, 5 * len("what comes next?"))
                assert [len((await inspection.workflow(each)).steps) for each in (here, there)] == [2, 3]
                with pytest.raises(NotFound):
                    await inspection.workflow("nobody's")
        async with InspectionClient(both.b.address) as inspection:
            await inspection.end_workflow(here)
            assert (await inspection.workflows()).open == 1
        await both.a.gateway.stop()
        status = await both.b.stub.GetClusterStatus(workflow_pb2.GetClusterStatusRequest())
        assert [each.reachable for each in status.gateways] == [False, True]


async def test_errors_and_refusals_of_the_holder_reach_the_client_of_the_other() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        mine = await both.a.start(workflow_id="mine", tenant="acme")
        of_none = await both.a.start(workflow_id=of_tenant("plain", "acme"))
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "tenant: "):
            await both.b.start(workflow_id=of_none, tenant="acme")
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "parent_step: "):
            await both.b.run(mine, parent_step=9)
        assert await both.b.start(workflow_id="mine", tenant="acme") == mine
        assert both.a.holds(mine)


async def test_cancelling_at_the_other_gateway_frees_the_worker() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with pair(worker) as both:
        workflow = await both.a.start()
        call = both.b.submit(workflow)
        await worker.stopped.wait()
        call.cancel()
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")


async def test_the_other_gateway_goes_on_with_a_step_whose_holder_has_gone() -> None:
    worker = ScriptedWorker("w0", stop_at=3, hold_chars=1)
    async with pair(worker) as both:
        workflow = await both.a.start()
        answer = Answer()
        reading = asyncio.create_task(read(both.b.submit(workflow, sampling=EIGHT), answer))
        await until(lambda: len(answer.token_ids) == 3, "the first tokens have come")
        worker.stop_at = -1
        await both.a.gateway.stop()
        await reading
        assert answer.token_ids == WHOLE
        assert answer.text == "".join(map(chr, WHOLE))
        assert [accepted.step for accepted in answer.accepted] == [0]
        assert both.b.holds(workflow)
        assert (await both.b.run(workflow)).accepted[0].step == 1


@pytest.mark.parametrize("at_holder", [True, False])
async def test_a_client_goes_on_at_another_gateway_without_losing_or_repeating_a_token(at_holder: bool) -> None:
    worker = ScriptedWorker("w0", stop_at=3, hold_chars=2)
    async with pair(worker) as both:
        first, second = (both.a, both.b) if at_holder else (both.b, both.a)
        workflow_id = await both.a.start()
        async with AsyncClient([first.address, second.address]) as client:
            workflow = await client.start_workflow(workflow_id)
            ids: list[int] = []
            text, accepted = "", []
            async for event in workflow.stream(agent="agent", prompt="go on", max_tokens=8, seed=5):
                match event:
                    case Accepted():
                        accepted.append(event.step)
                    case Tokens():
                        ids += event.token_ids
                        text += event.text
                if len(ids) == 3 and worker.stop_at == 3:
                    worker.stop_at = -1
                    await first.gateway.stop()
            assert (ids, text, accepted) == (WHOLE, "".join(map(chr, WHOLE)), [0])
            assert (await workflow.run(agent="agent", prompt="go on")).step == 1
            await workflow.end()


async def test_a_holder_that_was_thought_gone_learns_that_it_has_lost_the_workflow() -> None:
    worker = ScriptedWorker("w0")
    async with pair(worker) as both:
        workflow = await both.a.start()
        await both.a.run(workflow)
        await both.rig.recorded(workflow, steps=1)
        both.b.gateway.peers.lose(both.a.gateway.peers.me)
        assert (await both.b.run(workflow)).accepted[0].step == 1
        await both.a.run(workflow)  # at the old holder, which does not know yet
        await until(lambda: not both.a.holds(workflow), "the old holder knows")
        assert (await both.a.decisions())["workflow_moved"] == 1
        assert (await both.a.run(workflow)).accepted[0].step == 2
        await both.a.end(workflow)
        assert not both.b.holds(workflow)
        assert worker.retired == [workflow]
        events = both.predictor.of(workflow)
        await until(lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in both.predictor.of(workflow)), "the end")
        from_b = [event.sequence for event in events if event.sequence >= 1 << 32]
        assert from_b == sorted(from_b)
        late = max(event.sequence for event in events if event.sequence < 1 << 32)
        assert late < min(from_b), "the predictor takes what the old holder still tells for repeats"


async def test_gateways_that_race_for_a_workflow_agree_on_its_holder() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        workflows = [await both.a.start() for _ in range(12)]
        for workflow in workflows:
            await both.a.run(workflow)
        both.b.gateway.peers.lose(both.a.gateway.peers.me)
        await both.a.gateway.stop()
        await both.rig.start_gateway()  # takes its own back, while the other one is called about them
        answers = await asyncio.gather(*(both.b.run(workflow) for workflow in workflows))
        assert all(answer.token_ids == WHOLE[:4] for answer in answers)
        held_by_a = [both.rig.gateway.workflows.workflows.peek(workflow) is not None for workflow in workflows]
        assert [both.b.holds(workflow) for workflow in workflows] == [not held for held in held_by_a]


def accepted(both: Pair) -> list[WorkflowEvent]:
    """The events that a predictor accepts of those that have arrived."""
    known = PredictorWorkflows(both.rig.clock, lease_s=600.0, max_workflows=9, max_ended=9)
    taken = []
    for event in both.predictor.events:
        if (outcome := known.judge(event)).accepted:
            known.record(event, outcome)
            taken.append(event)
    return taken


def holders_in(both: Pair) -> set[int]:
    """Who has held the workflow of the events, each as a number that rises."""
    return {event.sequence >> 32 for event in accepted(both) if event.kind is EventKind.STEP_STARTED}


async def test_the_predictor_takes_the_steps_in_order_though_both_gateways_fight_for_the_workflow() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        workflow = await both.a.start()
        rounds = 0
        while rounds < 6 or len(holders_in(both)) < 2:  # they may find each other again before they have taken the workflow
            rounds += 1
            assert rounds <= 60, "the workflow has not changed hands"
            both.a.gateway.peers.lose(both.b.gateway.peers.me)
            both.b.gateway.peers.lose(both.a.gateway.peers.me)
            answers = await asyncio.gather(*(side.run(workflow) for side in (both.a, both.b, both.b, both.a)))
            assert all(answer.token_ids == WHOLE[:4] for answer in answers)
        await both.b.end(workflow)
        await until(lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in both.predictor.events), "the end has come")
        taken = accepted(both)
        started = [(event.sequence >> 32, event.step) for event in taken if event.kind is EventKind.STEP_STARTED]
        assert started == sorted(set(started)), "by holder, and each holder's in the order of their numbers"
        assert taken[-1].kind is EventKind.WORKFLOW_ENDED


async def test_the_workflows_of_a_gateway_that_is_gone_for_good_end_by_their_leases() -> None:
    clock = ManualClock(1000.0)
    worker = ScriptedWorker("w0")
    async with pair(worker, clock=clock) as both:
        workflow = await both.a.start(lease_s=10.0)
        await both.a.run(workflow)
        await both.a.gateway.stop()
        await both.b.gateway.lifecycle.take_over_all(lambda holder: holder == both.a.gateway.peers.me)
        assert both.b.holds(workflow)
        clock.advance(11.0)
        await until(lambda: worker.retired == [workflow], "its blocks are retired")


async def test_a_workflow_whose_take_over_is_confirmed_too_late_is_held(tmp_path: Path) -> None:
    """The client sends the call again, and the workflow has been taken already: by this call, and by no other gateway."""
    with serving(tmp_path) as server:
        async with proxy_of(server) as proxy, pair(ScriptedWorker("w0"), redis_url=f"redis://127.0.0.1:{proxy.port}") as both:
            first, *workflows = [await both.a.start() for _ in range(3)]
            await both.a.gateway.stop()
            entry = await both.rig.directory.workflow(first)
            assert entry is not None
            assert await both.b.gateway.lifecycle.entries.take_over(entry)  # so that the server knows the script
            proxy.closes, proxy.loses_answer_to = True, b'"taken":1'  # of the entry that is written first
            await both.b.gateway.lifecycle.take_over_all(lambda holder: holder == both.a.gateway.peers.me)
            assert not proxy.loses_answer_to, "it has been asked"
            assert all(both.b.holds(workflow) for workflow in workflows)


async def test_workflows_are_taken_from_a_gateway_that_two_looks_have_missed_and_from_no_other() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        workflow, directory = await both.a.start(), both.rig.directory
        await both.a.run(workflow)
        (entry,) = (each for each in await directory.gateways() if each.address == both.a.address)
        gone = GoneGateways(directory, both.b.gateway.peers, both.b.gateway.lifecycle)
        await gone.look()
        await gone.look()
        await directory.withdraw_gateway(entry)
        await gone.look()
        await directory.announce_gateway(entry)
        await gone.look()
        assert both.a.holds(workflow), "the directory had lost the gateway, not the cluster"
        await directory.withdraw_gateway(entry)
        await gone.look()
        await gone.look()
        assert both.b.holds(workflow)


async def test_a_workflow_that_has_ended_is_not_taken_over() -> None:
    async with pair(ScriptedWorker("w0")) as both:
        workflow = await both.a.start()
        await both.a.run(workflow)
        entry = await both.rig.directory.workflow(workflow)
        assert entry is not None
        await both.a.end(workflow)
        assert await both.b.gateway.lifecycle.entries.take_over(entry) is None
        assert await both.rig.directory.workflow(workflow) is None
