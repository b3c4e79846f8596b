"""The simulator's events of a recorded workflow are the events of a gateway that serves the same workflow."""

from dataclasses import replace

from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.rpc.v1 import types_pb2
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.events import events_of
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import running, until


def bare(event: WorkflowEvent) -> WorkflowEvent:
    """Without what depends on the clock and on what the texts are."""
    return replace(event, time=0.0, words=(), pieces=())


async def test_events_of_a_recorded_workflow_are_a_gateways() -> None:
    steps = tuple(
        TraceStep(agent, (Segment(SegmentKind.TASK, f"task-{number}", tokens),), f"out-{number}", 3, call_site=site)
        for number, (agent, site, tokens) in enumerate((("a", "plan", 20), ("b", "", 40), ("a", "check", 24)))
    )
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow(workload="research")
        for step in steps:
            prompt = types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack([7] * step.prompt_tokens)))
            sampling = types_pb2.Sampling(max_tokens=step.output_tokens)
            await rig.run(workflow, agent_id=step.agent, call_site=step.call_site, prompt=prompt, sampling=sampling)
        await rig.end_workflow(workflow)
        await until(
            lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in predictor.of(workflow)), "all events have arrived"
        )
        recorded = TraceWorkflow("w", "research", steps)
        reported = [
            event for event in predictor.of(workflow) if event.kind is not EventKind.STEP_PLACED
        ]  # a recording has no workers
        counted = [replace(event, sequence=sequence) for sequence, event in enumerate(reported)]
        assert [*map(bare, counted)] == [*map(bare, events_of(recorded, workflow))]
