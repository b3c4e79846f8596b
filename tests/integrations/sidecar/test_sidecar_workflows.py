"""Whose step a request is, what the predictor is told of it and forecasts, and what an engine is told of that."""

import asyncio
from typing import Any

import pytest
from httpx2 import RemoteProtocolError

from pbkv_cluster.core.clock import ManualClock, SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.integrations.sidecar.workflow.forecasts import predictor_of
from tests.integrations.sidecar.scripted_engine import ScriptedEngine
from tests.integrations.sidecar.sidecar_rig import SidecarRig, sidecar
from tests.polling import eventually

TASK = "Write an article about the deep sea, please."


async def events(rig: SidecarRig, workflow: str, last: EventKind) -> list[WorkflowEvent]:
    """What the predictor was told of a workflow, once it has been told of this."""
    await eventually(lambda: any(event.kind is last for event in rig.predictor.of(workflow)))
    return rig.predictor.of(workflow)


async def ask(rig: SidecarRig, messages: list[Any], **headers: str) -> Any:
    ended = rig.ended
    answer = await rig.http.post(f"{rig.url}/v1/chat/completions", json={"model": "m", "messages": messages}, headers=headers)
    await eventually(lambda: rig.ended > ended)
    return answer


async def test_agents_are_recognised_and_the_predictor_is_told_of_their_steps() -> None:
    """By what the conversation shows, with no word of the client."""
    engine = ScriptedEngine(say="Whales sing, and this is the plan of it.")
    async with sidecar(engine) as rig:
        planner, writer = ({"role": "system", "content": text} for text in ("You plan articles.", "You write articles."))
        user = {"role": "user", "content": TASK}
        first = await ask(rig, [planner, user])
        plan = first.json()["choices"][0]["message"]["content"]
        second = await ask(rig, [writer, user, {"role": "user", "content": plan}])
        third = await ask(rig, [planner, user, {"role": "assistant", "content": plan}, {"role": "user", "content": "More."}])
        workflow = first.headers["x-pbkv-workflow"]
        assert {answer.headers["x-pbkv-workflow"] for answer in (first, second, third)} == {workflow}
        assert [answer.headers["x-pbkv-step"] for answer in (first, second, third)] == ["0", "1", "2"]
        assert first.headers["x-pbkv-agent"] == third.headers["x-pbkv-agent"] != second.headers["x-pbkv-agent"]
        assert (await rig.http.delete(f"{rig.url}/v1/workflows/{workflow}")).status_code == 200
        told = await events(rig, workflow, EventKind.WORKFLOW_ENDED)
        kinds = [event.kind.value for event in told]
        assert kinds == ["workflow_started", *["step_started", "step_finished"] * 3, "workflow_ended"]
        assert [event.sequence for event in told] == list(range(len(told)))
        starts = [event for event in told if event.kind is EventKind.STEP_STARTED]
        assert [event.agent for event in starts] == [a.headers["x-pbkv-agent"] for a in (first, second, third)]
        assert starts[0].words
        assert not starts[1].words
        ends = [event for event in told if event.kind is EventKind.STEP_FINISHED]
        assert {(event.prompt_tokens, event.output_tokens) for event in ends} == {(100, 3)}


async def test_who_names_a_workflow_gets_it_and_its_last_step_ends_it() -> None:
    engine = ScriptedEngine()
    async with sidecar(engine) as rig:
        answer = await rig.chat(TASK, headers={"x-pbkv-workflow": "w-1", "x-pbkv-agent": "planner", "x-pbkv-workload": "press"})
        assert (answer.headers["x-pbkv-workflow"], answer.headers["x-pbkv-agent"]) == ("w-1", "planner")
        final = {"x-dynamo-session-id": "s-1", "x-dynamo-session-final": "true"}
        await rig.chat(TASK, headers=final)
        await events(rig, "s-1", EventKind.WORKFLOW_ENDED)
        assert len(rig.server.proxy.workflows) == 1
        of_another = {"x-pbkv-tenant": "another"}
        answer = await rig.chat(TASK, headers={"x-pbkv-workflow": "w-1", **of_another})
        assert answer.headers["x-pbkv-workflow"] == of_tenant("w-1", "another")
        for expected in (200, 404):
            assert (await rig.http.delete(f"{rig.url}/v1/workflows/w-1", headers=of_another)).status_code == expected
        assert [each.id for each in rig.server.proxy.workflows.all()] == ["w-1"]


async def test_tool_calls_begin_with_an_answer_and_end_with_their_result() -> None:
    engine = ScriptedEngine()
    call = {"id": "c-1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    async with sidecar(engine) as rig:
        engine.calls = [call]
        messages: list[Any] = [{"role": "user", "content": TASK}]
        answer = await ask(rig, messages)
        workflow = answer.headers["x-pbkv-workflow"]
        engine.calls = []
        messages += [{"role": "assistant", "content": engine.say, "tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": "c-1", "content": "Whales."}]
        assert (await ask(rig, messages)).headers["x-pbkv-workflow"] == workflow
        told = await events(rig, workflow, EventKind.TOOL_FINISHED)
        tools = [(event.kind, event.tool) for event in told if event.tool]
        assert tools == [(EventKind.TOOL_STARTED, "search"), (EventKind.TOOL_FINISHED, "search")]


async def test_a_silent_workflow_ends_with_its_lease_and_not_while_a_step_runs() -> None:
    engine, clock = ScriptedEngine(stop_after=0), ManualClock(1000.0)
    async with sidecar(engine, clock=clock, gateway={"workflow_lease_s": 10.0}) as rig:
        asking = asyncio.create_task(rig.chat(TASK, stream=True, headers={"x-pbkv-workflow": "w"}))
        await engine.stopped.wait()
        clock.advance(30.0)
        await rig.chat("Another?", headers={"x-pbkv-workflow": "other"})
        clock.advance(30.0)
        await events(rig, "other", EventKind.WORKFLOW_ENDED)
        assert rig.server.proxy.workflows.peek("w") is not None
        engine.go.set()
        await asking
        await eventually(lambda: rig.server.proxy.steps.in_flight == 0)
        clock.advance(30.0)
        await events(rig, "w", EventKind.WORKFLOW_ENDED)


async def test_the_end_of_a_workflow_cuts_its_requests_off() -> None:
    engine = ScriptedEngine(stop_after=1)
    async with sidecar(engine) as rig:
        asking = asyncio.create_task(rig.chat(TASK, stream=True, headers={"x-pbkv-workflow": "w"}))
        await engine.stopped.wait()
        await rig.http.delete(f"{rig.url}/v1/workflows/w")
        with pytest.raises(RemoteProtocolError):
            await asking
        await eventually(lambda: engine.left == 1)
        assert rig.server.proxy.steps.in_flight == 0


async def test_beyond_the_bound_of_workflows_requests_pass_without_one() -> None:
    engine = ScriptedEngine()
    async with sidecar(engine, gateway={"max_workflows": 1}) as rig:
        assert "x-pbkv-workflow" in (await rig.chat(TASK)).headers
        answer = await rig.chat("Something else, which begins in another way.")
        assert answer.status_code == 200
        assert "x-pbkv-workflow" not in answer.headers
        assert rig.server.proxy.decisions["workflow_refused"] == 1


async def test_a_response_goes_to_the_engine_that_has_the_one_before() -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    async with sidecar(*engines) as rig:
        ended = rig.ended
        body = {"model": "m", "input": "A first question, which is long enough?"}
        first = await rig.http.post(f"{rig.url}/v1/responses", json=body)
        await eventually(lambda: rig.ended > ended)
        home = first.headers["x-pbkv-engine"]
        for number in range(3):
            later = {"model": "m", "input": f"{number}?", "previous_response_id": first.json()["id"]}
            assert (await rig.http.post(f"{rig.url}/v1/responses", json=later)).headers["x-pbkv-engine"] == home
            got = await rig.http.get(f"{rig.url}/v1/responses/{first.json()['id']}")
            assert got.headers["x-pbkv-engine"] == home


HINTED = {"x-pbkv-workflow": "w", "x-pbkv-agent": "planner", "x-pbkv-tenant": "acme"}


@pytest.mark.parametrize(("kind", "priority"), [("vllm", -5), ("sglang", 5)])
async def test_hints_are_added_where_they_are_switched_on_and_the_clients_own_stay(kind: str, priority: int) -> None:
    switched = {"kind": kind, "hints": ["cache_salt", "kv_transfer_params", "priority", "session_id", "kv_hints"]}
    nvext = {"agent_hints": {"priority": 5}}
    plain, engine = ScriptedEngine(), ScriptedEngine()
    async with sidecar(plain) as rig:
        await rig.chat(TASK, nvext=nvext, headers=HINTED)
    async with sidecar(engine, engine=switched) as rig:
        await rig.chat(TASK, nvext=nvext, headers=HINTED)
        await rig.chat(TASK, nvext=nvext, headers=HINTED, priority=1, session_id="mine")
    added = {
        "cache_salt": "acme",
        "kv_transfer_params": {"pbkv": {"workflow": of_tenant("w", "acme"), "agent": "planner"}},
        "priority": priority,
        "session_id": of_tenant("w", "acme"),
    }
    assert engine.bodies == [{**plain.bodies[0], **added}, {**plain.bodies[0], **added, "priority": 1, "session_id": "mine"}]


async def test_a_predictor_of_its_own_learns_and_its_forecasts_reach_the_engine() -> None:
    engine, clock = ScriptedEngine(), SystemClock()
    async with (
        predictor_of(Config(), "", clock) as services,
        sidecar(engine, services=services, engine={"hints": ["kv_hints"]}) as rig,
    ):
        for run in range(3):
            for agent in ("planner", "writer", "critic"):
                named = {"x-pbkv-workflow": f"w{run}", "x-pbkv-agent": agent, "x-pbkv-workload": "press"}
                await rig.chat(f"{agent}: {TASK}", headers=named)
            await rig.http.delete(f"{rig.url}/v1/workflows/w{run}")
        named = {"x-pbkv-workflow": "w", "x-pbkv-agent": "planner", "x-pbkv-workload": "press"}
        await rig.chat(TASK, headers=named)

        def forecast_of_the_writer() -> bool:
            forecast = rig.server.forecasts.of("w")
            return forecast is not None and forecast.step == 0 and forecast.steps[0].agents.get("writer", 0.0) > 0.3

        await eventually(forecast_of_the_writer)
        weight = rig.server.forecasts.weight("w")
        assert weight("writer") > weight("stranger") == 0.0
        await rig.chat(TASK, headers={**named, "x-pbkv-agent": "writer"})
        retain = engine.bodies[-1]["kv_hints"]["actions"][0]
        assert (retain["action_type"], retain["payload"]["session_id"]) == ("retain", "w")
        await rig.http.delete(f"{rig.url}/v1/workflows/w")
        assert rig.server.forecasts.of("w") is None
