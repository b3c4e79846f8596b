"""Workflows: opened, resumed, ended by their clients and by their leases."""

import asyncio

import grpc

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Answer, read, refused, running, until

STARTED = workflow_pb2.ReportToolCallRequest.PHASE_STARTED
FINISHED = workflow_pb2.ReportToolCallRequest.PHASE_FINISHED


async def test_starting_an_open_workflow_returns_it_unchanged() -> None:
    async with running() as rig:
        request = workflow_pb2.StartWorkflowRequest(workflow_id="mine", lease_s=30.0)
        first = await rig.stub.StartWorkflow(request)
        again = await rig.stub.StartWorkflow(workflow_pb2.StartWorkflowRequest(workflow_id="mine", lease_s=99.0))
        assert (first.workflow_id, first.lease_s) == ("mine", 30.0)
        assert again == first
        assert (await rig.status()).open_workflows == 1


async def test_an_id_is_drawn_and_the_lease_is_the_configured_one() -> None:
    async with running(workflow_lease_s=77.0) as rig:
        first = await rig.stub.StartWorkflow(workflow_pb2.StartWorkflowRequest())
        assert first.lease_s == 77.0
        assert await rig.start_workflow() != first.workflow_id


async def test_more_workflows_than_allowed_are_refused() -> None:
    async with running(max_workflows=2) as rig:
        first = await rig.start_workflow()
        await rig.start_workflow(workflow_id="second")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "2 workflows are open"):
            await rig.start_workflow()
        assert await rig.start_workflow(workflow_id="second") == "second"
        await rig.end_workflow(first)
        assert await rig.start_workflow()


async def test_ending_retires_the_workflow_on_every_worker_that_served_it() -> None:
    workers = [ScriptedWorker(f"w{n}") for n in range(3)]
    async with running(*workers) as rig:
        workflow = await rig.start_workflow()
        served = {(await rig.run(workflow)).usage.worker_id}
        await rig.end_workflow(workflow)
        assert {worker.id for worker in workers if workflow in worker.retired} == served
        assert await rig.directory.workflow(workflow) is None
        async with refused(grpc.StatusCode.NOT_FOUND):
            await rig.run(workflow)
        async with refused(grpc.StatusCode.NOT_FOUND):
            await rig.end_workflow(workflow)


async def test_ending_cancels_running_steps_and_tells_their_clients() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        answer = Answer()
        reading = asyncio.create_task(read(rig.submit(workflow), answer))
        await until(lambda: len(answer.token_ids) == 2, "the client has what the worker has sent")
        await rig.end_workflow(workflow)
        await reading
        assert answer.finished[0].reason == types_pb2.FINISH_REASON_CANCELLED
        assert answer.usage.generated_tokens == len(answer.token_ids) == 2
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        await rig.sees(lambda status: status.running_steps == 0, "the step is gone")


async def test_ending_reaches_a_step_that_waits_for_a_worker() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        reading = asyncio.create_task(read(rig.submit(workflow)))
        await worker.stopped.wait()
        await worker.server.stop(0)
        await rig.sees(lambda status: status.decisions["worker_wait"] == 1, "the step waits for another worker")
        await rig.end_workflow(workflow)
        assert (await reading).finished[0].reason == types_pb2.FINISH_REASON_CANCELLED


async def test_a_silent_workflow_ends_by_its_lease_and_a_call_renews_it() -> None:
    clock = ManualClock(1000.0)
    worker = ScriptedWorker("w0")
    async with running(worker, clock=clock) as rig:
        silent = await rig.start_workflow(lease_s=10.0)
        lively = await rig.start_workflow(lease_s=10.0)
        await rig.run(silent)
        clock.advance(9.0)
        await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(workflow_id=lively, tool="t", phase=STARTED))
        clock.advance(2.0)
        await rig.sees(lambda status: status.open_workflows == 1, "one has ended")
        async with refused(grpc.StatusCode.NOT_FOUND):
            await rig.run(silent)
        await until(lambda: worker.retired == [silent], "its blocks are retired")
        assert (await rig.run(lively)).finished
        assert (await rig.status()).decisions["workflow_lease_expired"] == 1


async def test_a_workflow_renewed_while_others_are_ended_stays_open() -> None:
    clock = ManualClock(1000.0)
    worker = ScriptedWorker("w0", retire_go=asyncio.Event())
    async with running(worker, clock=clock) as rig:
        silent = await rig.start_workflow(lease_s=10.0)
        lively = await rig.start_workflow(lease_s=10.0)
        await rig.run(silent)
        await rig.run(lively)
        clock.advance(11.0)
        await until(lambda: worker.retired == [silent], "the first is being retired")
        await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(workflow_id=lively, tool="t", phase=STARTED))
        assert worker.retire_go is not None
        worker.retire_go.set()
        marker = await rig.start_workflow(lease_s=1.0)
        clock.advance(2.0)
        await rig.sees(lambda status: status.decisions["workflow_lease_expired"] == 2, f"{marker} has ended, a sweep later")
        assert (await rig.run(lively)).accepted[0].step == 1


async def test_a_restarted_gateway_ends_the_workflows_that_stay_silent() -> None:
    clock = ManualClock(1000.0)
    worker = ScriptedWorker("w0")
    async with running(worker, clock=clock) as rig:
        workflow = await rig.start_workflow(lease_s=10.0)
        await rig.run(workflow)
        await rig.recorded(workflow, steps=1)
        await rig.restart_gateway()
        status = await rig.status()
        assert (status.open_workflows, status.decisions["workflow_resumed"]) == (1, 1)
        clock.advance(11.0)
        await until(lambda: worker.retired == [workflow], "its blocks are retired")
        await rig.sees(lambda status: status.open_workflows == 0, "it has ended")


async def test_a_workflow_belongs_to_its_tenant() -> None:
    async with running() as rig:
        mine = await rig.start_workflow(workflow_id="mine", tenant="acme")
        of_none = of_tenant("plain", "acme")
        assert await rig.start_workflow(workflow_id=of_none) == of_none
        for _ in range(2):
            for workflow_id in ("plain", of_none):
                async with refused(grpc.StatusCode.INVALID_ARGUMENT, "tenant: "):
                    await rig.start_workflow(workflow_id=workflow_id, tenant="acme")
            assert await rig.start_workflow(workflow_id="mine", tenant="acme") == mine
            assert await rig.start_workflow(workflow_id=mine) == mine
            assert (await rig.status()).open_workflows <= 2
            await rig.restart_gateway()


async def test_a_running_step_keeps_its_workflow_open() -> None:
    clock = ManualClock()
    worker = ScriptedWorker("w0", stop_at=1)
    async with running(worker, clock=clock) as rig:
        workflow, marker = await rig.start_workflow(lease_s=10.0), await rig.start_workflow(lease_s=10.0)
        reading = asyncio.create_task(read(rig.submit(workflow)))
        await worker.stopped.wait()
        clock.advance(11.0)
        await rig.sees(lambda status: status.open_workflows == 1, f"{marker} has ended")
        worker.go.set()
        assert len((await reading).token_ids) == 4
        assert (await rig.run(workflow)).accepted[0].step == 1


async def test_a_step_that_is_not_placed_yet_keeps_its_workflow_open() -> None:
    clock = ManualClock()
    async with running(clock=clock) as rig:
        workflow, marker = await rig.start_workflow(lease_s=10.0), await rig.start_workflow(lease_s=10.0)
        reading = asyncio.create_task(read(rig.submit(workflow)))
        await rig.sees(lambda status: status.decisions["worker_wait"] == 1, "it has been admitted, and waits for a worker")
        clock.advance(11.0)
        await rig.sees(lambda status: status.open_workflows == 1, f"{marker} has ended")
        await rig.add_worker(ScriptedWorker("w0"))
        assert len((await reading).token_ids) == 4
        clock.advance(11.0)
        await rig.sees(lambda status: status.open_workflows == 0, "it ends when no step of it is left")


async def test_the_end_of_a_workflow_ends_a_step_that_is_not_placed_yet() -> None:
    async with running() as rig:
        workflow = await rig.start_workflow()
        call = rig.submit(workflow)
        await rig.sees(lambda status: status.decisions["worker_wait"] == 1, "it waits for a worker")
        await rig.end_workflow(workflow)
        async with refused(grpc.StatusCode.NOT_FOUND, f"workflow '{workflow}' has ended"):
            await read(call)
        await rig.sees(lambda status: status.running_steps == 0, "it holds nothing")


async def test_a_restarted_gateway_finds_the_workflow_again() -> None:
    workers = [ScriptedWorker("w0"), ScriptedWorker("w1")]
    async with running(*workers) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow(workload="research", tenant="acme", lease_s=50.0)
        await rig.run(workflow)
        await until(lambda: len(predictor.of(workflow)) == 4, "the events of the first step have arrived")
        await rig.recorded(workflow, steps=1)
        await rig.restart_gateway()
        opened = await rig.stub.StartWorkflow(workflow_pb2.StartWorkflowRequest(workflow_id=workflow))
        assert opened.lease_s == 50.0
        answer = await rig.run(workflow)
        assert answer.accepted[0].step == 1
        assert {request.tenant for worker in workers for request in worker.requests} == {"acme"}
        await until(lambda: len(predictor.of(workflow)) == 7, "the events of the second step have arrived")
        events = predictor.of(workflow)
        assert [event.sequence for event in events] == sorted(event.sequence for event in events)
        assert {event.workload for event in events} == {"research"}
        await rig.end_workflow(workflow)
        assert all(worker.retired == [workflow] for worker in workers), "the workers that served it before are not known"
        await rig.restart_gateway()
        async with refused(grpc.StatusCode.NOT_FOUND):
            await rig.run(workflow)


async def test_events_of_a_workflow_are_reported_in_order_and_repeats_once() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow(workload="research")
        await rig.run(workflow, call_site="plan")
        for phase in (STARTED, STARTED, FINISHED, FINISHED):
            request = workflow_pb2.ReportToolCallRequest(workflow_id=workflow, tool="search", phase=phase, expected_s=1.5)
            await rig.stub.ReportToolCall(request)
        await rig.run(workflow)
        await rig.run(workflow, parent_step=0)
        await rig.end_workflow(workflow)
        await until(
            lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in predictor.of(workflow)), "all events have arrived"
        )
        events = predictor.of(workflow)
        assert [event.sequence for event in events] == list(range(11))
        step = [EventKind.STEP_STARTED, EventKind.STEP_FINISHED]
        tools = [EventKind.TOOL_STARTED, EventKind.TOOL_FINISHED]
        assert [event.kind for event in events] == [
            EventKind.WORKFLOW_STARTED,
            EventKind.STEP_STARTED,
            EventKind.STEP_PLACED,
            EventKind.STEP_FINISHED,
            *tools,
            *step,
            *step,
            EventKind.WORKFLOW_ENDED,
        ]
        first = events[1]
        assert (first.agent, first.call_site, first.step, first.parent_step, first.prompt_tokens) == (
            "agent",
            "plan",
            0,
            None,
            16,
        )
        assert (events[3].output_tokens, events[4].tool, events[4].expected_s) == (4, "search", 1.5)
        assert [event.parent_step for event in events if event.kind is EventKind.STEP_STARTED] == [None, 0, 0]


async def test_without_a_predictor_steps_go_on_and_their_events_arrive_later() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow = await rig.start_workflow()
        await rig.run(workflow)
        assert not (await rig.status()).predictor_reachable
        predictor = await rig.add_predictor()
        await until(lambda: len(predictor.of(workflow)) == 4, "the events have arrived")
        await rig.sees(lambda status: status.predictor_address == predictor.address, "it is seen")
        await predictor.server.stop(0)
        await rig.run(workflow)
        await rig.sees(lambda status: not status.predictor_reachable, "its absence is noticed")
        assert not (await rig.status()).predictor_address
        successor = await rig.add_predictor()
        last = [EventKind.STEP_STARTED, EventKind.STEP_FINISHED]
        await until(lambda: [event.kind for event in successor.of(workflow)][-2:] == last, "its successor gets the rest")
