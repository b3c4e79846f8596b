"""What a gateway passes on to another one arrives there as it was."""

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.workflow.resumption import Resumption
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, StepRequest, TextPrompt, TokenPrompt
from pbkv_cluster.gateway.step.request_wire import step_request_from_wire, step_request_to_wire
from pbkv_cluster.rpc.v1 import workflow_pb2

TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
CHAT = ChatPrompt(
    (
        ChatMessage("user", ("two", "parts")),
        ChatMessage("assistant", "", tool_calls=(FunctionCall("search", '{"q": "ü"}', "c1"),)),
        ChatMessage("tool", "found", tool_call_id="c1"),
    ),
    (TOOL,),
    "I shall",
)
SAMPLING = SamplingOptions(max_tokens=7, temperature=0.5, top_p=0.25, seed=2**64 - 1, stop=("a", "b"), ignore_eos=True)
REQUESTS = [
    StepRequest("w", "agent", TextPrompt("hi")),
    StepRequest("w", "agent", CHAT, "site", 0, SAMPLING, -3, "acme", None, "id", Resumption(0, pack([1, 2]), 9)),
    StepRequest("w", "agent", TokenPrompt(pack([5])), sampling=SamplingOptions(forced_output=pack([6]))),
    StepRequest("w", "agent", TokenPrompt(pack([5])), step_id="id", resume=Resumption(None, b"", 1)),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_arrives_as_it_was_sent(request_: StepRequest) -> None:
    wire = workflow_pb2.SubmitStepRequest.FromString(step_request_to_wire(request_).SerializeToString())
    assert step_request_from_wire(wire) == request_


@pytest.mark.parametrize("tool", ["{", "[]", "[" * 100_000])
def test_a_tool_that_is_no_json_object_is_refused_by_name(tool: str) -> None:
    message = step_request_to_wire(StepRequest("w", "agent", CHAT))
    message.prompt.messages.tools[0] = tool
    with pytest.raises(InvalidArgument, match=r"^prompt\.messages\.tools: "):
        step_request_from_wire(message)


def test_every_form_of_prompt_is_tested() -> None:
    assert {type(each.prompt) for each in REQUESTS} == set(Prompt.__args__)
