"""Whose step a request is: said in a header, by a session, a trace or a cache key, or shown by the conversation itself."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, BadRequestError

from pbkv_cluster.core.workflow.events import EventKind
from tests.gateway.http.http_rig import MODEL, HttpRig, http_running
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import until

TASK = "Write an article about the deep sea."
PLANNER = "You plan articles. Today is day 17."
WRITER = "You write articles."


def say(prompt: str) -> str:
    """Answers that differ from agent to agent, and from one turn to the next."""
    return f"Answer {prompt.count(';')} of {'the planner' if 'You plan' in prompt else 'the writer'}."


async def ask(client: AsyncOpenAI, messages: list[Any], **fields: Any) -> tuple[str, str, str]:
    """Workflow, agent and text of an answer."""
    raw = await client.chat.completions.with_raw_response.create(
        **{"model": MODEL, "messages": messages, "max_tokens": 60, **fields}
    )
    text = raw.parse().choices[0].message.content
    return raw.headers["x-pbkv-workflow"], raw.headers["x-pbkv-agent"], text or ""


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def test_a_conversation_is_one_workflow() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        messages: list[Any] = [system(WRITER), user(TASK)]
        first, agent, answer = await ask(client, messages)
        for turn in range(3):
            messages += [assistant(answer), user(f"More of it, part {turn}.")]
            workflow, same_agent, answer = await ask(client, messages)
            assert (workflow, same_agent) == (first, agent)
        started = await http.events(first, EventKind.STEP_STARTED, least=4)
        assert [event.step for event in started] == [0, 1, 2, 3]


async def test_agents_that_share_a_conversation_are_one_workflow_in_order() -> None:
    """Each sees the others as users, and has a system prompt of its own."""
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        first, planner, plan = await ask(client, [system(PLANNER), user(TASK)])
        second, writer, draft = await ask(client, [system(WRITER), user(TASK), user(plan)])
        third, again, _ = await ask(client, [system(PLANNER), user(TASK), assistant(plan), user(draft)])
        assert {first, second, third} == {first}
        assert planner == again != writer
        started = await http.events(first, EventKind.STEP_STARTED, least=3)
        assert [event.agent for event in started] == [planner, writer, planner]


async def test_agents_that_start_side_by_side_are_one_workflow() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        first, planner, _ = await ask(client, [system(PLANNER), user(TASK)])
        second, writer, _ = await ask(client, [system(WRITER), user(TASK)])
        assert first == second
        assert planner != writer


async def test_the_same_beginning_again_is_another_workflow() -> None:
    """Also if both runs read the same: steps go to the run that has not had them."""
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        runs = []
        for _ in range(2):
            first, _, plan = await ask(client, [system(PLANNER), user(TASK)])
            second, _, _ = await ask(client, [system(WRITER), user(TASK), user(plan)])
            assert first == second
            runs.append(first)
        assert runs[0] != runs[1]


async def test_a_short_greeting_connects_nobody() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        first, _, _ = await ask(client, [system(PLANNER), user("Hello!")])
        second, _, _ = await ask(client, [system(WRITER), user("Hello!")])
        assert first != second


async def test_tenants_are_never_connected() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http:
        async with http.openai(**{"x-pbkv-tenant": "a"}) as client:
            first, _, plan = await ask(client, [system(PLANNER), user(TASK)])
        async with http.openai(**{"x-pbkv-tenant": "b"}) as client:
            second, _, _ = await ask(client, [system(PLANNER), user(TASK), assistant(plan), user("Go on.")])
        assert first != second


async def test_tenants_that_use_one_cache_key_have_workflows_of_their_own() -> None:
    found = []
    async with http_running(ScriptedWorker("w0", say=say)) as http:
        for tenant in ("a", "b", ""):
            async with http.openai(**({"x-pbkv-tenant": tenant} if tenant else {})) as client:
                found.append((await ask(client, [user(TASK)], prompt_cache_key="support"))[0])
    assert len(set(found)) == 3


async def test_a_refused_request_leaves_no_workflow_open() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        with pytest.raises(BadRequestError, match="tokens"):
            await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "long " * 20_000}])
        await http.rig.sees(lambda status: status.open_workflows == 0, "no open workflow")


async def test_an_agent_has_one_name_whatever_the_numbers_in_its_prompt() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        _, first, _ = await ask(client, [system(PLANNER), user(TASK)])
        _, second, _ = await ask(client, [system(PLANNER.replace("17", "2042")), user("Something else.")])
        _, nobody, _ = await ask(client, [user("Something else.")])
        assert first == second
        assert first.startswith("you-plan-articles-today-")
        assert nobody == "assistant"


async def test_what_is_remembered_is_bounded() -> None:
    """With room for nothing, nobody is recognised, and everything else works."""
    async with http_running(ScriptedWorker("w0", say=say), http_recognition_bytes=0) as http, http.openai() as client:
        first, _, plan = await ask(client, [system(PLANNER), user(TASK)])
        second, _, _ = await ask(client, [system(PLANNER), user(TASK), assistant(plan), user("Go on.")])
        assert first != second


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("headers", "fields", "workflow"),
    [
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, {}, f"trace-{TRACE}"),
        ({"x-dynamo-session-id": "s1"}, {}, "s1"),
        ({"x-dynamo-session-id": "s2", "x-dynamo-parent-session-id": "s1"}, {}, "s1"),
        ({}, {"prompt_cache_key": "k"}, "k"),
        ({}, {"metadata": {"workflow": "m"}}, "m"),
        ({"x-pbkv-workflow": "w", "x-dynamo-session-id": "s1"}, {"prompt_cache_key": "k"}, "w"),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, {"prompt_cache_key": "k"}, "k"),
    ],
)
async def test_what_the_client_says_counts(headers: dict[str, str], fields: dict[str, Any], workflow: str) -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai(**headers) as client:
        for message in ("One thing.", "Quite another thing."):
            assert (await ask(client, [user(message)], **fields))[0] == workflow


@pytest.mark.parametrize("trace", ["nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01"])
async def test_a_malformed_trace_says_nothing(trace: str) -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai(traceparent=trace) as client:
        assert not (await ask(client, [user(TASK)]))[0].startswith("trace-")


async def test_grandchildren_belong_to_the_first_session() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        for session, parent in (("a", ""), ("b", "a"), ("c", "b")):
            headers = {"x-dynamo-session-id": session, "x-dynamo-parent-session-id": parent}
            assert (await ask(client, [user(TASK)], extra_headers=headers))[0] == "a"


async def ended(http: HttpRig, workflow: str) -> None:
    await http.events(workflow, EventKind.WORKFLOW_ENDED)


async def test_the_last_step_of_a_session_ends_its_workflow() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        child = {"x-dynamo-session-id": "b", "x-dynamo-parent-session-id": "a", "x-dynamo-session-final": "true"}
        await ask(client, [user(TASK)], extra_headers={"x-dynamo-session-id": "a"})
        await ask(client, [user(TASK)], extra_headers=child)
        assert (await http.rig.status()).open_workflows == 1, "the end of a child is not the end"
        last = {"x-dynamo-session-id": "a", "x-dynamo-session-final": "true"}
        await ask(client, [user(TASK)], extra_headers=last)
        await ended(http, "a")
        assert (await http.rig.status()).open_workflows == 0
        with pytest.raises(openai.BadRequestError, match="x-dynamo-session-final"):
            await ask(client, [user(TASK)], extra_headers={"x-dynamo-session-final": "perhaps"})


async def test_a_workflow_ends_when_it_is_deleted() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        workflow, _, _ = await ask(client, [user(TASK)])
        assert await client.delete(f"/workflows/{workflow}", cast_to=object) == {"id": workflow, "object": "workflow.ended"}
        await ended(http, workflow)
        with pytest.raises(openai.NotFoundError):
            await client.delete(f"/workflows/{workflow}", cast_to=object)


async def test_a_workflow_that_has_ended_is_not_continued() -> None:
    async with http_running(ScriptedWorker("w0", say=say)) as http, http.openai() as client:
        first, _, plan = await ask(client, [system(PLANNER), user(TASK)])
        await client.delete(f"/workflows/{first}", cast_to=object)
        second, _, _ = await ask(client, [system(PLANNER), user(TASK), assistant(plan), user("Go on.")])
        assert first != second


async def test_a_silent_workflow_ends_by_its_lease() -> None:
    async with http_running(ScriptedWorker("w0", say=say), workflow_lease_s=0.2) as http, http.openai() as client:
        workflow, _, _ = await ask(client, [user(TASK)])
        await ended(http, workflow)


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {"q": {}}}}}
]
CALL = '<tool_call>\n{"name": "search", "arguments": {"q": "whales"}}\n</tool_call>'


def call_then_answer(prompt: str) -> str:
    return "Whales sing." if "tool_response" in prompt else f"Let me look. {CALL}"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_step_that_ends_with_a_tool_call_begins_a_pause_and_the_next_step_ends_it(stream: bool) -> None:
    worker = ScriptedWorker("w0", say=call_then_answer)
    async with http_running(worker) as http, http.openai() as client:
        messages: list[Any] = [user("What do whales do all day?")]
        asked: Any = {"model": MODEL, "messages": messages, "tools": TOOLS, "stream": stream, "max_tokens": 200}
        raw = await client.chat.completions.with_raw_response.create(**asked)
        workflow = raw.headers["x-pbkv-workflow"]
        answer: Any = raw.parse()
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            (call,) = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
            (reason,) = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            (call,) = answer.choices[0].message.tool_calls
        assert (text.strip(), reason) == ("Let me look.", "tool_calls")
        assert (call.function.name, call.function.arguments) == ("search", '{"q": "whales"}')
        (began,) = await http.events(workflow, EventKind.TOOL_STARTED)
        assert began.tool == "search"
        assert http.predictor.of(workflow)[-1].kind is EventKind.TOOL_STARTED
        called = {"id": call.id, "type": "function", "function": {"name": "search", "arguments": call.function.arguments}}
        messages += [
            {"role": "assistant", "content": text, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": call.id, "content": "They sing."},
        ]
        second, _, _ = await ask(client, messages, tools=TOOLS, max_tokens=200)
        assert second == workflow
        kinds = [event.kind for event in await http.events(workflow, *EventKind, least=8)]
        order = [EventKind.STEP_FINISHED, EventKind.TOOL_STARTED, EventKind.TOOL_FINISHED, EventKind.STEP_STARTED]
        assert [kind for kind in kinds if kind in order][1:5] == order
        await until(lambda: [started for *_, started in worker.tool_calls] == [True, False], "the worker is told of both")
