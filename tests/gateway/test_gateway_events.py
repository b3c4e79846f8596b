"""What events contain: hashes of prompts and outputs, the projected hidden state, the declared graph; never text."""

import grpc
import pytest

from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph, StepNode
from pbkv_cluster.rpc.convert import event_to_wire, step_graph_to_wire
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.peers import ScriptedPredictor, ScriptedWorker, answer_tokens
from tests.gateway.rig import Rig, codec, running, until

HIDDEN = b"\x00\x3c\x00\xbc"
LONG_TASK = "Find out who broke the build, and why. " * 6
CHAT = types_pb2.Prompt(
    messages=types_pb2.ChatMessages(
        messages=[
            types_pb2.ChatMessage(role="system", content="You are careful."),
            types_pb2.ChatMessage(role="user", content="Fix the parser."),
            types_pb2.ChatMessage(role="assistant", content="How?"),
            types_pb2.ChatMessage(role="user", content="As you like."),
        ]
    )
)


def token_ids(text: str) -> types_pb2.Prompt:
    return types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=codec().encode(text)))


def said(sampling: types_pb2.Sampling) -> str:
    return "".join(map(chr, answer_tokens(sampling)))


async def events_until_end(rig: Rig, predictor: ScriptedPredictor, workflow: str) -> dict[EventKind, list[WorkflowEvent]]:
    """Ends the workflow; its events by their kinds."""
    await rig.end_workflow(workflow)
    await until(
        lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in predictor.of(workflow)), "all events have arrived"
    )
    events: dict[EventKind, list[WorkflowEvent]] = {}
    for event in predictor.of(workflow):
        events.setdefault(event.kind, []).append(event)
    return events


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        (types_pb2.Prompt(text=LONG_TASK), LONG_TASK),
        (CHAT, "Fix the parser."),
        (types_pb2.Prompt(messages=types_pb2.ChatMessages(messages=CHAT.messages.messages[:1])), "You are careful."),
        (token_ids(LONG_TASK), LONG_TASK[:128]),
    ],
    ids=["text", "chat", "chat without a user", "token ids"],
)
async def test_the_first_step_carries_words_of_the_task_and_every_step_pieces_of_its_prompt(
    prompt: types_pb2.Prompt, task: str
) -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        await rig.run(workflow, prompt=prompt)
        await rig.run(workflow, prompt=types_pb2.Prompt(text="0123456789" * 12))
        first, second = (await events_until_end(rig, predictor, workflow))[EventKind.STEP_STARTED]
    assert first.words == hashed_words(task) != ()
    assert second.words == ()
    assert [first.pieces, second.pieces] == [prompt_pieces(request.prompt.data) for request in worker.requests]


async def test_a_restarted_gateway_does_not_take_the_next_step_for_the_first() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        await rig.run(workflow, prompt=types_pb2.Prompt(text="the task"))
        await rig.recorded(workflow, 1)
        await rig.restart_gateway()
        await rig.run(workflow, prompt=types_pb2.Prompt(text="what comes later"))
        started = (await events_until_end(rig, predictor, workflow))[EventKind.STEP_STARTED]
    assert [event.words for event in started] == [hashed_words("the task"), ()]


async def test_the_end_of_a_step_carries_words_of_its_output_and_the_hidden_state_of_its_prompt() -> None:
    sampling = types_pb2.Sampling(max_tokens=6, seed=3)
    async with running(ScriptedWorker("w0", hidden=HIDDEN, hold_chars=2)) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        await rig.run(workflow, sampling=sampling)
        events = await events_until_end(rig, predictor, workflow)
    (finished,) = events[EventKind.STEP_FINISHED]
    assert finished.words == hashed_words(said(sampling))
    assert finished.hidden == HIDDEN
    assert (events[EventKind.STEP_STARTED][0].hidden, finished.pieces) == (b"", ())


@pytest.mark.parametrize("hold_chars", [0, 2])
async def test_words_of_a_step_that_goes_on_elsewhere_are_not_repeated(hold_chars: int) -> None:
    sampling = types_pb2.Sampling(max_tokens=8, seed=5)
    workers = [ScriptedWorker(f"w{n}", hidden=bytes([n, 60]), hold_chars=hold_chars, stop_at=4) for n in range(2)]
    async with running(*workers) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        call = rig.submit(workflow, sampling=sampling)
        await until(lambda: any(worker.stopped.is_set() for worker in workers), "a worker has sent half of it")
        lost, other = sorted(workers, key=lambda worker: not worker.stopped.is_set())
        other.stop_at = -1
        await lost.server.stop(0)
        text = "".join([event.tokens.text async for event in call])
        (finished,) = (await events_until_end(rig, predictor, workflow))[EventKind.STEP_FINISHED]
    assert text == said(sampling)
    assert finished.words == hashed_words(text)
    assert finished.hidden == other.hidden


async def test_a_cancelled_step_reports_the_output_so_far() -> None:
    worker = ScriptedWorker("w0", hidden=HIDDEN, stop_at=3)
    sampling = types_pb2.Sampling(max_tokens=8, seed=5)
    async with running(worker) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        call = rig.submit(workflow, sampling=sampling)
        text = ""
        async for event in call:
            text += event.tokens.text
            if len(text) == 3:
                call.cancel()
                break
        assert await call.code() is grpc.StatusCode.CANCELLED
        await until(lambda: worker.cancelled == 1, "the worker is cancelled")
        (finished,) = (await events_until_end(rig, predictor, workflow))[EventKind.STEP_FINISHED]
    assert (finished.words, finished.output_tokens, finished.hidden) == (hashed_words(said(sampling)[:3]), 3, b"")


async def test_the_start_of_a_workflow_carries_its_graph() -> None:
    graph = StepGraph((StepNode("plan"), StepNode("code", ("plan",))))
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()
        declared = await rig.start_workflow(step_graph=step_graph_to_wire(graph))
        plain = await rig.start_workflow()
        await rig.run(declared)
        events = await events_until_end(rig, predictor, declared)
        assert events[EventKind.WORKFLOW_STARTED][0].graph == graph
        assert all(
            event.graph is None
            for kind, events_of_kind in events.items()
            for event in events_of_kind
            if kind != "workflow_started"
        )
        assert (await events_until_end(rig, predictor, plain))[EventKind.WORKFLOW_STARTED][0].graph is None


async def test_a_worker_is_reported_once_for_each_workflow() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()
        workflow, other = await rig.start_workflow(), await rig.start_workflow()
        for name in (workflow, workflow, other):
            await rig.run(name)
        for name in (workflow, other):
            events = await events_until_end(rig, predictor, name)
            assert [event.worker for event in events[EventKind.STEP_PLACED]] == ["w0"]


async def test_no_text_leaves_the_gateway_with_an_event() -> None:
    secret = "xyzzyplugh"
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        await rig.run(
            workflow, prompt=types_pb2.Prompt(text=f"{secret} " * 8), sampling=types_pb2.Sampling(max_tokens=20, seed=1)
        )
        events = await events_until_end(rig, predictor, workflow)
    sent = b"".join(event_to_wire(event).SerializeToString() for kind in events.values() for event in kind)
    for text in (secret, said(types_pb2.Sampling(max_tokens=20, seed=1))):
        assert text.encode() not in sent
        assert pack(list(text.encode())) not in sent
