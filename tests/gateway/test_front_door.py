"""What a front door calls: plain values in, plain events out, no message of the wire."""

import asyncio

import pytest

from pbkv_cluster.core.errors import InvalidArgument, NotFound
from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, GatewayEvent, Tokens
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, StepRequest, TextPrompt, TokenPrompt
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, codec, running, until

PROMPTS: list[tuple[Prompt, bytes]] = [
    (TextPrompt("hi"), b"hi"),
    (ChatPrompt((ChatMessage("user", "hi"), ChatMessage("assistant", ""))), b"user:hi;assistant:;"),
    (TokenPrompt(codec().encode("hi")), b"hi"),
]


async def events_of(rig: Rig, request: StepRequest) -> list[GatewayEvent]:
    step = rig.gateway.submission.admit(0)
    try:
        return [event async for event in rig.gateway.submission.run(step, request)]
    finally:
        rig.gateway.submission.close(step)


@pytest.mark.parametrize(("prompt", "text"), PROMPTS, ids=["text", "messages", "token ids"])
async def test_a_step_yields_plain_events(prompt: Prompt, text: bytes) -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        workflow = await rig.gateway.workflows.start(WorkflowRequest(tenant="acme"))
        request = StepRequest(
            workflow.id, "agent", prompt, call_site="plan", sampling=SamplingOptions(max_tokens=2, seed=0), priority=3
        )
        accepted, *output, finished = await events_of(rig, request)
    assert accepted == Accepted(0, "w0", len(text))
    assert output[0] in (Tokens(codec().encode("a"), "a"), Tokens(codec().encode("ah"), "ah")), "what is ready travels together"
    assert [type(event) for event in output] == [Tokens] * len(output)
    assert b"".join(event.packed for event in output if isinstance(event, Tokens)) == codec().encode("ah")
    assert "".join(event.text for event in output if isinstance(event, Tokens)) == "ah"
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.usage.generated_tokens) == (FinishReason.LENGTH, 2)
    (sent,) = worker.requests
    assert sent.prompt.data == codec().encode(text.decode())
    assert (sent.agent_id, sent.priority, sent.tenant) == ("agent", 3, "acme")


async def test_a_wrong_step_fails_by_name_and_leaves_nothing_behind() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow = await rig.gateway.workflows.start(WorkflowRequest())
        step = rig.gateway.submission.admit(0)
        with pytest.raises(InvalidArgument) as caught:
            await anext(aiter(rig.gateway.submission.run(step, StepRequest(workflow.id, "", TextPrompt("hi")))))
        assert caught.value.field == "agent_id"
        assert step.state is StepState.FAILED
        status = await rig.gateway.status.read()
        assert (status.running_steps, status.decisions) == (0, {})


async def test_a_closed_step_frees_its_worker_at_once() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with running(worker) as rig:
        workflow = await rig.gateway.workflows.start(WorkflowRequest())
        submission = rig.gateway.submission
        step = submission.admit(0)
        events = aiter(submission.run(step, StepRequest(workflow.id, "agent", TextPrompt("hi"))))
        states = [step.state]
        assert isinstance(await anext(events), Accepted)
        states.append(step.state)
        assert isinstance(await anext(events), Tokens)
        states.append(step.state)
        submission.close(step)
        assert [*states, step.state] == [
            StepState.ACCEPTED,
            StepState.PLACED,
            StepState.STREAMING,
            StepState.CANCELLED,
        ]
        status = await rig.gateway.status.read()
        assert (status.running_steps, status.decisions["step_cancelled"]) == (0, 1)
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        (last,) = [event async for event in events]
        assert isinstance(last, Finished)
        assert last.reason is FinishReason.CANCELLED


async def test_tool_calls_and_parent_steps_reach_predictor_and_workers_unchanged() -> None:
    worker, idle = ScriptedWorker("w0"), ScriptedWorker("w1")
    async with running(worker, idle) as rig:
        predictor = await rig.add_predictor()
        workflows = rig.gateway.workflows
        await workflows.start(WorkflowRequest("mine", workload="research"))
        for parent_step in (None, None, 0):
            await events_of(rig, StepRequest("mine", "agent", TextPrompt("hi"), call_site="plan", parent_step=parent_step))
        await workflows.report_tool("mine", ToolCall("search", "1", 2.5), started=True)
        await workflows.report_tool("mine", ToolCall("search", "1"), started=False)
        await workflows.end("mine")
        with pytest.raises(NotFound):
            await workflows.end("mine")
        await until(
            lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in predictor.of("mine")), "all events have arrived"
        )
    assert not idle.tool_calls, "it has run no step of the workflow"
    assert worker.tool_calls == [("mine", ToolCall("search", "1", 2.5), True), ("mine", ToolCall("search", "1"), False)]
    parents = [request.parent_step if request.HasField("parent_step") else None for request in worker.requests]
    assert parents == [None, 0, 0]
    events = predictor.of("mine")
    started = [event for event in events if event.kind is EventKind.STEP_STARTED]
    assert [event.parent_step for event in started] == [None, 0, 0]
    assert {event.call_site for event in started} == {"plan"}
    tools = [(event.kind, event.tool, event.expected_s) for event in events if event.tool]
    assert tools == [(EventKind.TOOL_STARTED, "search", 2.5), (EventKind.TOOL_FINISHED, "search", None)]


async def test_a_worker_that_does_not_hear_of_a_tool_call_is_counted_and_holds_nobody_up() -> None:
    worker = ScriptedWorker("w0", tool_call_go=asyncio.Event())
    async with running(worker) as rig:
        workflows = rig.gateway.workflows
        await workflows.start(WorkflowRequest("mine"))
        await events_of(rig, StepRequest("mine", "agent", TextPrompt("hi")))
        await workflows.report_tool("mine", ToolCall("search"), started=True)
        assert (await rig.status()).decisions["tool_call_unheard"] == 1
