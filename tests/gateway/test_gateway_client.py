"""The Python client against a gateway."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from pbkv_cluster.client import Accepted, AsyncClient, Client, Finished, FinishReason, StepResult, Tokens
from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, NotFound
from pbkv_cluster.core.tokens import pack, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.store.cluster_index import ProblemsEntry
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import running, until

T = TypeVar("T")


async def blocking(call: Callable[[], T]) -> T:
    """Runs blocking code on a thread, since the gateway runs on this loop."""
    return await asyncio.to_thread(call)


async def test_five_lines_are_enough() -> None:
    async with running(ScriptedWorker("w0", captured={Tier.GPU: 16})) as rig:

        def five_lines() -> StepResult:
            with Client(rig.address) as client, client.start_workflow() as workflow:
                return workflow.run(agent="planner", prompt="Plan a trip to the sea.", max_tokens=32)

        step = await blocking(five_lines)
        assert len(step.text) == len(step.token_ids) == 32
        assert step.usage.delivered == {Tier.GPU: 16}
        assert (step.finish_reason, step.step, step.worker_id) == (FinishReason.LENGTH, 0, "w0")
        assert (await rig.status()).open_workflows == 0, "leaving the block ends the workflow"


async def test_both_clients_see_the_same_events() -> None:
    async with running(ScriptedWorker("w0")) as rig:

        def sync_events() -> list[object]:
            with Client(rig.address) as client, client.start_workflow() as workflow:
                return list(workflow.stream(agent="a", prompt="p", max_tokens=3, seed=1))

        async with AsyncClient(rig.address) as client, await client.start_workflow() as workflow:
            events = [event async for event in workflow.stream(agent="a", prompt="p", max_tokens=3, seed=1)]
        other = await blocking(sync_events)
        assert isinstance(events[0], Accepted)
        assert all(isinstance(event, Tokens) for event in events[1:-1])
        assert isinstance(events[-1], Finished)
        assert other[:-1] == events[:-1]


async def test_every_option_reaches_the_worker() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker, engine={"allow_forced_output": True}) as rig, AsyncClient(rig.address) as client:
        workflow = await client.start_workflow("mine", workload="w", tenant="t", lease_s=30.0)
        assert (workflow.id, workflow.lease_s) == (of_tenant("mine", "t"), 30.0)
        await workflow.run(agent="first", prompt="p", max_tokens=1)
        await workflow.run(
            agent="second",
            prompt=[{"role": "user", "content": "hi"}],
            call_site="site",
            parent_step=0,
            priority=2,
            tenant="other",
            max_tokens=5,
            temperature=0.5,
            top_p=0.25,
            seed=2**64 - 1,
            stop="STOP",
            ignore_eos=True,
        )
        request = worker.requests[1]
        assert (request.agent_id, request.parent_step, request.priority, request.tenant) == ("second", 0, 2, "other")
        assert worker.requests[0].tenant == "t"
        sampling = request.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (5, 0.5, 0.25)
        assert (sampling.seed, list(sampling.stop), sampling.ignore_eos) == (2**64 - 1, ["STOP"], True)
        await workflow.run(agent="third", prompt=pack([1, 2]), forced_output=[5, 6, 7])
        assert unpack(worker.requests[2].sampling.forced_output.data) == [5, 6, 7]
        assert worker.requests[2].sampling.max_tokens == 3, "a replay decodes all that it was given"


async def test_errors_are_typed_in_both_clients() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        async with AsyncClient(rig.address) as client, await client.start_workflow() as workflow:
            with pytest.raises(InvalidArgument) as caught:
                await workflow.run(agent="a", prompt="p", max_tokens=0)
            assert caught.value.field == "sampling.max_tokens"
            await workflow.end()
            with pytest.raises(NotFound):
                await workflow.run(agent="a", prompt="p")

        def sync_errors() -> None:
            with Client(rig.address) as client:
                with pytest.raises(InvalidArgument) as caught:
                    client.start_workflow(lease_s=-1.0)
                assert caught.value.field == "lease_s"
                with client.start_workflow() as workflow:
                    workflow.end()
                    with pytest.raises(NotFound):
                        workflow.run(agent="a", prompt="p")

        await blocking(sync_errors)


async def test_an_error_in_the_body_is_not_hidden_and_ends_the_workflow() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        with pytest.raises(ZeroDivisionError):
            async with AsyncClient(rig.address) as client, await client.start_workflow():
                raise ZeroDivisionError

        def sync_body() -> None:
            with pytest.raises(ZeroDivisionError), Client(rig.address) as client, client.start_workflow():
                raise ZeroDivisionError

        await blocking(sync_body)
        assert (await rig.status()).open_workflows == 0


async def test_leaving_a_stream_cancels_the_step() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with running(worker) as rig:

        def leave_early() -> None:
            with Client(rig.address) as client:
                stream = client.start_workflow().stream(agent="a", prompt="p")
                assert isinstance(next(stream), Accepted)
                assert isinstance(next(stream), Tokens)
                stream.close()  # type: ignore[attr-defined]  # a generator
                done.wait(20)

        done = threading.Event()
        leaving = asyncio.create_task(blocking(leave_early))
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        done.set()
        await leaving
        async with AsyncClient(rig.address) as client:
            async for event in (await client.start_workflow()).stream(agent="a", prompt="p"):
                if isinstance(event, Tokens):
                    break
            await until(lambda: worker.cancelled == 2, "and so is this one")


async def test_a_step_may_have_a_time_limit() -> None:
    worker = ScriptedWorker("w0", stop_at=0)
    async with running(worker) as rig, AsyncClient(rig.address) as client, await client.start_workflow() as workflow:
        with pytest.raises(DeadlineExceeded):
            await workflow.run(agent="a", prompt="p", timeout_s=0.2)
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")


async def test_tools_are_reported_around_their_body() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        predictor = await rig.add_predictor()

        def sync_tool(workflow_id: str) -> None:
            with Client(rig.address) as client:
                workflow = client.start_workflow(workflow_id)
                with pytest.raises(ZeroDivisionError), workflow.tool("compile"):
                    raise ZeroDivisionError

        async with AsyncClient(rig.address) as client:
            workflow = await client.start_workflow()
            async with workflow.tool("search", expected_s=2.0):
                pass
            await blocking(lambda: sync_tool(workflow.id))
        await until(lambda: len(predictor.of(workflow.id)) == 5, "all events have arrived")
        tools = [(event.kind, event.tool, event.expected_s) for event in predictor.of(workflow.id)[1:]]
        assert tools == [
            (EventKind.TOOL_STARTED, "search", 2.0),
            (EventKind.TOOL_FINISHED, "search", None),
            (EventKind.TOOL_STARTED, "compile", None),
            (EventKind.TOOL_FINISHED, "compile", None),
        ]


async def test_the_status_has_the_problems_of_members() -> None:
    async with running() as rig:
        await rig.directory.announce_problems(ProblemsEntry("predictor", ("the disk is full", "learning has started over")))
        async with AsyncClient(rig.address) as client:
            problems = (await client.status()).problems
            assert [(each.member, each.problem) for each in problems] == [
                ("predictor", "the disk is full"),
                ("predictor", "learning has started over"),
            ]


async def test_the_status_has_the_reasons_that_members_count() -> None:
    async with running() as rig:
        await rig.directory.announce_problems(ProblemsEntry("otel", reasons={"operation_unknown": 3}))
        async with AsyncClient(rig.address) as client:
            status = await client.status()
            assert {each.member: dict(each.times) for each in status.reasons} == {"otel": {"operation_unknown": 3}}
            assert not status.problems


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_an_endpoint_that_is_none_is_refused_at_once(kind: Callable[[str], object]) -> None:
    with pytest.raises(InvalidArgument, match=r"^endpoint: the port must be a number from 1 to 65535, got '127.0.0.1:99999'"):
        kind("127.0.0.1:99999")


async def test_the_status_is_the_gateways() -> None:
    async with running(ScriptedWorker("w0")) as rig:

        def sync_status() -> list[str]:
            with Client(rig.address) as client:
                return [each.worker_id for each in client.status().workers]

        assert await blocking(sync_status) == ["w0"]
        async with AsyncClient(rig.address) as client:
            assert [each.worker_id for each in (await client.status()).workers] == ["w0"]
