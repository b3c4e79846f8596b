"""Plain values to messages, without a server."""

from typing import Any

import pytest

from pbkv_cluster.client import Accepted, Finished, FinishReason, StepEvent, Tokens
from pbkv_cluster.client.requests import StepOptions, prompt_message, step_request
from pbkv_cluster.client.results import collect
from pbkv_cluster.core.errors import InvalidArgument, Unavailable
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.core.tokens import pack, unpack
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.rpc import convert


def test_a_prompt_may_be_text_messages_ids_or_packed_ids() -> None:
    assert prompt_message("hi").text == "hi"
    assert unpack(prompt_message([1, 2]).token_ids.data) == [1, 2]
    assert unpack(prompt_message((3,)).token_ids.data) == [3]
    assert unpack(prompt_message(pack([4, 5])).token_ids.data) == [4, 5]
    (message,) = prompt_message([{"role": "user", "content": "hi"}]).messages.messages
    assert (message.role, message.content) == ("user", "hi")


def test_parts_and_fields_of_tools_reach_the_wire_and_come_back() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "sky"}'}}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Rayleigh", "name": "search", "tool_call_id": "c1"},
    ]
    assert convert.chat_from_wire(prompt_message(chat).messages) == (
        ChatMessage("user", ("a", "b")),
        ChatMessage("assistant", "", tool_calls=(FunctionCall("search", '{"query": "sky"}', "c1"),)),
        ChatMessage("tool", "Rayleigh", "search", "c1"),
    )


def test_an_empty_prompt_still_has_a_form_so_that_the_gateway_can_name_it() -> None:
    assert prompt_message("").WhichOneof("form") == "text"
    assert prompt_message([]).WhichOneof("form") == "token_ids"
    assert prompt_message(b"").WhichOneof("form") == "token_ids"


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ([1.5], "prompt.token_ids"),
        (["1"], "prompt.token_ids"),
        ([2**31], "prompt.token_ids"),
        ([{"role": "user"}], "prompt.messages"),
        ([{"role": "user", "content": 3}], "prompt.messages"),
        ([{"role": "user", "content": "x"}, "y"], "prompt.messages"),
        ([{"role": "user", "content": "x", "image": "y"}], "prompt.messages"),
    ],
)
def test_what_is_no_prompt_is_refused_by_name(prompt: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        prompt_message(prompt)
    assert caught.value.field == field


@pytest.mark.parametrize("options", [{"max_tokens": 2**31}, {"seed": -1}, {"max_tokens": "many"}, {"priority": 1.5}])
def test_what_does_not_fit_the_wire_is_refused(options: Any) -> None:
    with pytest.raises(InvalidArgument):
        step_request("w", "a", "p", options)


def test_what_is_left_out_stays_unset_for_the_server_to_choose() -> None:
    request = step_request("w", "a", "p", StepOptions())
    assert not any(request.sampling.HasField(name) for name in ("max_tokens", "temperature", "top_p", "seed"))
    assert not request.HasField("parent_step")
    assert step_request("w", "a", "p", StepOptions(parent_step=0)).HasField("parent_step")
    assert list(step_request("w", "a", "p", StepOptions(stop="one")).sampling.stop) == ["one"]
    assert list(step_request("w", "a", "p", StepOptions(stop=("a", "b"))).sampling.stop) == ["a", "b"]


def test_events_add_up_to_a_result() -> None:
    usage = Usage(prompt_tokens=3, worker_id="w1")
    events: list[StepEvent] = [
        Accepted(2, "w0", 3),
        Tokens(pack([1, 2]), "ab"),
        Tokens(b"", "c"),
        Finished(FinishReason.STOP, usage),
    ]
    result = collect(events)
    assert (result.text, result.token_ids, result.step) == ("abc", (1, 2), 2)
    assert (result.finish_reason, result.usage, result.worker_id) == (FinishReason.STOP, usage, "w1")
    with pytest.raises(Unavailable):
        collect(events[:-1])
