"""Bad input is refused by the name of its field, and the gateway goes on."""

from typing import Any

import grpc
import pytest

from pbkv_cluster.core.tokens import pack
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from tests.gateway.peers import CONTEXT, ScriptedWorker
from tests.gateway.rig import read, refused, running, step_request

LONG = "n" * 257
NAN, INF = float("nan"), float("inf")


def ids(*values: int) -> types_pb2.Prompt:
    return types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack(values)))


def chat(*messages: tuple[str, str]) -> types_pb2.Prompt:
    entries = [types_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    return types_pb2.Prompt(messages=types_pb2.ChatMessages(messages=entries))


def message(**fields: Any) -> types_pb2.Prompt:
    """A conversation of one message."""
    return types_pb2.Prompt(messages=types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role="assistant", **fields)]))


BAD_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"workflow_id": ""}, "workflow_id: must not be empty"),
    ({"workflow_id": LONG}, "workflow_id: at most 256 bytes"),
    ({"agent_id": ""}, "agent_id: must not be empty"),
    ({"agent_id": "é" * 129}, "agent_id: at most 256 bytes, got 258"),
    ({"call_site": LONG}, "call_site: at most 256 bytes"),
    ({"tenant": LONG}, "tenant: at most 256 bytes"),
    ({"parent_step": 0}, "parent_step: must be an earlier step"),
    ({"parent_step": -1}, "parent_step: must be an earlier step"),
    ({"prompt": types_pb2.Prompt()}, "prompt: one of"),
    ({"prompt": types_pb2.Prompt(text="")}, "prompt.text: must hold"),
    ({"prompt": types_pb2.Prompt(text="x" * CONTEXT)}, "prompt.text: 256 tokens leave no room"),
    ({"prompt": types_pb2.Prompt(text="x" * (257 * CONTEXT))}, "prompt.text: 65792 bytes cannot fit"),
    ({"prompt": types_pb2.Prompt(text="x" * (5 * CONTEXT))}, "prompt.text: has more tokens than fit in a context of 256"),
    ({"prompt": types_pb2.Prompt(text="🙂" * (2 * CONTEXT))}, "prompt.text: has more tokens than fit in a context of 256"),
    ({"prompt": types_pb2.Prompt(text="🙂" * (65 * CONTEXT))}, "prompt.text: 66560 bytes cannot fit"),
    ({"prompt": chat(("user", "é" * CONTEXT), ("r" * 5 * CONTEXT, ""))}, "prompt.messages: has more tokens than fit"),
    ({"prompt": chat(*[("user", "")] * 65_537)}, "prompt.messages: must be at most 65536, got 65537"),
    ({"prompt": chat()}, "prompt.messages: must hold"),
    ({"prompt": chat(("user", "a"), ("", "b"))}, "prompt.messages.role: must not be empty, in message 1"),
    (
        {"prompt": message(content="a", parts=[types_pb2.ChatMessage.Part(text="b")])},
        "prompt.messages.parts: must not be set together with content, in message 0",
    ),
    (
        {"prompt": message(tool_calls=[types_pb2.ChatMessage.ToolCall(name="f", arguments="[1]")])},
        "prompt.messages.tool_calls.arguments: must be a JSON object, in message 0",
    ),
    (
        {"prompt": message(tool_calls=[types_pb2.ChatMessage.ToolCall(arguments="{}")])},
        "prompt.messages.tool_calls.name: must not be empty, in message 0",
    ),
    (
        {"prompt": message(tool_calls=[types_pb2.ChatMessage.ToolCall(name="search")])},
        "prompt.messages: the model's chat template leaves out the tool calls of message 0",
    ),
    ({"prompt": chat(("user", "x" * CONTEXT))}, "prompt.messages: 262 tokens leave no room"),
    ({"prompt": ids()}, "prompt.token_ids: must hold"),
    ({"prompt": ids(1, 257)}, "prompt.token_ids: id 257 at position 1 is outside"),
    ({"prompt": ids(-1)}, "prompt.token_ids: id -1 at position 0 is outside"),
    ({"prompt": ids(*[1] * CONTEXT)}, "prompt.token_ids: 256 tokens leave no room"),
    ({"prompt": types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=b"abc"))}, "prompt.token_ids.data: 3 bytes"),
    ({"sampling": types_pb2.Sampling(max_tokens=0)}, "sampling.max_tokens: "),
    ({"sampling": types_pb2.Sampling(max_tokens=-5)}, "sampling.max_tokens: "),
    ({"sampling": types_pb2.Sampling(temperature=-0.5)}, "sampling.temperature: "),
    ({"sampling": types_pb2.Sampling(temperature=NAN)}, "sampling.temperature: "),
    ({"sampling": types_pb2.Sampling(temperature=INF)}, "sampling.temperature: "),
    ({"sampling": types_pb2.Sampling(top_p=0.0)}, "sampling.top_p: "),
    ({"sampling": types_pb2.Sampling(top_p=1.5)}, "sampling.top_p: "),
    ({"sampling": types_pb2.Sampling(top_p=NAN)}, "sampling.top_p: "),
    ({"sampling": types_pb2.Sampling(stop=["x"] * 17)}, "sampling.stop: "),
    ({"sampling": types_pb2.Sampling(stop=[""])}, "sampling.stop: "),
    ({"sampling": types_pb2.Sampling(stop=["é" * 513])}, "sampling.stop: at most 1024 bytes, got 1026"),
    (
        {"sampling": types_pb2.Sampling(forced_output=types_pb2.PackedTokens(data=b"abc"))},
        "sampling.forced_output.data: 3 bytes",
    ),
    ({"sampling": types_pb2.Sampling(forced_output=types_pb2.PackedTokens())}, "sampling.forced_output: "),
]


async def test_every_bad_field_of_a_step_is_named_and_the_service_goes_on() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        for fields, details in BAD_STEPS:
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, details):
                await read(rig.stub.SubmitStep(step_request(**{"workflow_id": workflow} | fields)))
        assert not worker.requests, "nothing wrong reached a worker"
        answer = await rig.run(workflow)
        assert answer.accepted[0].step == 0, "what was refused takes no number"
        assert len(answer.token_ids) == 4


async def test_replay_is_refused_where_it_is_not_allowed() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow = await rig.start_workflow()
        sampling = types_pb2.Sampling(forced_output=types_pb2.PackedTokens(data=pack([1])))
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "sampling.forced_output: "):
            await rig.run(workflow, sampling=sampling)


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({"workflow_id": LONG}, "workflow_id: at most 256 bytes"),
        ({"workload": LONG}, "workload: at most 256 bytes"),
        ({"tenant": LONG}, "tenant: at most 256 bytes"),
        ({"lease_s": -1.0}, "lease_s: "),
        ({"lease_s": 1e-300}, "lease_s: must be 0, for the default, or at least 0.001 s"),
        ({"lease_s": NAN}, "lease_s: "),
        ({"lease_s": INF}, "lease_s: "),
        ({"lease_s": 1e9}, "lease_s: "),
    ],
)
async def test_a_bad_field_of_a_workflow_is_named(fields: dict[str, Any], details: str) -> None:
    async with running() as rig:
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, details):
            await rig.start_workflow(**fields)
        assert await rig.start_workflow()


async def test_bad_fields_of_a_tool_call_are_named() -> None:
    started = workflow_pb2.ReportToolCallRequest.PHASE_STARTED
    cases: list[tuple[dict[str, Any], str]] = [
        ({"workflow_id": ""}, "workflow_id: must not be empty"),
        ({"tool": ""}, "tool: must not be empty"),
        ({"tool": LONG}, "tool: at most 256 bytes"),
        ({"call_id": LONG}, "call_id: at most 256 bytes"),
        ({"phase": workflow_pb2.ReportToolCallRequest.PHASE_UNSPECIFIED}, "phase: must be"),
        ({"expected_s": -1.0}, "expected_s: "),
        ({"expected_s": NAN}, "expected_s: "),
        ({"expected_s": INF}, "expected_s: "),
    ]
    async with running() as rig:
        good: dict[str, Any] = {"workflow_id": await rig.start_workflow(), "tool": "search", "phase": started}
        for fields, details in cases:
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, details):
                await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(**good | fields))
        await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(**good, expected_s=2.5))


async def test_a_workflow_that_is_not_open_is_not_found() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        async with refused(grpc.StatusCode.NOT_FOUND, "workflow 'nobody' is not open"):
            await rig.run("nobody")
        async with refused(grpc.StatusCode.NOT_FOUND, "workflow 'nobody' is not open"):
            await rig.end_workflow("nobody")
        report = workflow_pb2.ReportToolCallRequest(
            workflow_id="nobody", tool="t", phase=workflow_pb2.ReportToolCallRequest.PHASE_STARTED
        )
        async with refused(grpc.StatusCode.NOT_FOUND, "workflow 'nobody' is not open"):
            await rig.stub.ReportToolCall(report)
