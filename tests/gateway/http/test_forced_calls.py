"""`tool_choice` that demands a call: the model is made to begin one, and the answer has it, or says that it has not."""

import json
from typing import Any

import anthropic
import openai
import pytest

from pbkv_cluster.gateway.http.tools.formats import tool_format
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker

USER: Any = [{"role": "user", "content": "Is it warm in Rome?"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "time")]
REST = {  # what the models of each format write after the beginning of a named call
    "hermes": ' {"city": "Rome"}}\n</tool_call>',
    "llama3_json": ' {"city": "Rome"}}',
    "mistral": ' {"city": "Rome"}}]',
}


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def answering(form: str, rest: str, name: str = "weather") -> ScriptedWorker:
    """A model that goes on with a call which its prompt has begun; without one, it chats."""
    start = tool_format(form, "").call_start(name)
    return ScriptedWorker("w0", say=lambda prompt: rest if prompt.endswith(f";{start}") else "Who knows?")


@pytest.mark.parametrize("form", list(REST))
@pytest.mark.parametrize("stream", [True, False])
async def test_a_named_function_is_called(form: str, stream: bool) -> None:
    worker = answering(form, REST[form])
    asked: Any = {"model": MODEL, "messages": USER, "tools": TOOLS, "stream": stream}
    async with http_running(worker, model={"tool_format": form}) as http, http.openai() as client:
        answer: Any = await client.chat.completions.create(**asked, tool_choice=named("weather"))
        chunks = [chunk async for chunk in answer] if stream else [answer]
        choices = [choice for chunk in chunks for choice in chunk.choices]
        deltas = [choice.delta if stream else choice.message for choice in choices]
        (call,) = [call for delta in deltas for call in delta.tool_calls or ()]
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
        assert "".join(delta.content or "" for delta in deltas) == ""
        assert choices[-1].finish_reason == "tool_calls"
        free: Any = await client.chat.completions.create(**{**asked, "stream": False})
    assert free.choices[0].message.content == "Who knows?"


async def test_any_tool_may_be_demanded() -> None:
    async with (
        http_running(answering("hermes", 'time", "arguments": {"city": "Rome"}}\n</tool_call>', name="")) as http,
        http.openai() as client,
    ):
        asked: Any = {"model": MODEL, "messages": USER, "tools": TOOLS}
        answer = await client.chat.completions.create(**asked, tool_choice="required")
        flat: Any = [{"type": "function", "name": name, "parameters": SCHEMA} for name in ("weather", "time")]
        response = await client.responses.create(model=MODEL, input="When?", tools=flat, tool_choice="required")
    calls: Any = answer.choices[0].message.tool_calls
    (call,) = calls
    assert call.function.name == "time"
    assert [item.type for item in response.output] == ["function_call"]


@pytest.mark.parametrize(
    ("choice", "name", "rest"),
    [
        ({"type": "tool", "name": "weather"}, "weather", REST["hermes"]),
        ({"type": "any"}, "weather", REST["hermes"]),  # the only one that there is
    ],
)
async def test_anthropics_choices(choice: Any, name: str, rest: str) -> None:
    tools: Any = [{"name": "weather", "input_schema": SCHEMA}]
    async with http_running(answering("hermes", rest, name)) as http, http.anthropic() as client:
        answer = await client.messages.create(model=MODEL, messages=USER, max_tokens=200, tools=tools, tool_choice=choice)
        with pytest.raises(anthropic.BadRequestError, match="there is no tool 'other'"):
            await client.messages.create(
                model=MODEL, messages=USER, max_tokens=9, tools=tools, tool_choice={"type": "tool", "name": "other"}
            )
    (block,) = answer.content
    assert block.type == "tool_use"
    assert (block.name, block.input) == ("weather", {"city": "Rome"})
    assert answer.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("choice", "name", "rest", "problem"),
    [
        (named("weather"), "weather", " Rome, I think.", "is no call of a tool"),
        ("required", "", 'sea", "arguments": {}}\n</tool_call>', "has called 'sea', which is no tool"),
    ],
)
async def test_an_answer_that_is_not_what_was_demanded_is_an_error(choice: Any, name: str, rest: str, problem: str) -> None:
    async with http_running(answering("hermes", rest, name)) as http, http.openai() as client:
        with pytest.raises(openai.UnprocessableEntityError, match=problem) as caught:
            await client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS, tool_choice=choice)
        assert (caught.value.param, caught.value.code) == ("tool_choice", "no_tool_call")


async def test_an_answer_that_is_cut_says_so() -> None:
    async with http_running(answering("hermes", REST["hermes"])) as http, http.openai() as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=USER, tools=TOOLS, tool_choice=named("weather"), max_tokens=4
        )
    assert answer.choices[0].finish_reason == "length"


async def test_a_model_that_calls_no_tools_cannot_be_made_to() -> None:
    async with http_running(ScriptedWorker("w0"), model={"tool_format": "none"}) as http, http.openai() as client:
        with pytest.raises(openai.BadRequestError, match="calls no tools"):
            await client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS, tool_choice=named("weather"))
