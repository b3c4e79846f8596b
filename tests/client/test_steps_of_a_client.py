"""Steps of an asyncio client, over one stream: each as if it had a call of its own."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pbkv_cluster.client import Accepted, AsyncClient, Tokens
from pbkv_cluster.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    LimitExceeded,
    ResourceExhausted,
    TryAgain,
    Unavailable,
)
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.rpc.channel import MAX_MESSAGE_BYTES
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.v1 import workflow_pb2
from tests.client.flaky_gateway import FlakyGateway, served
from tests.polling import eventually
from tests.simulator.recording_gateway import RecordingGateway, serving


class _Gateway(RecordingGateway):
    """Counts its streams; its steps wait where they may not go on, and fail as they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.cancelled = 0

    def SubmitSteps(  # noqa: N802
        self, requests: AsyncIterator[workflow_pb2.SubmitStepsRequest], context: Any
    ) -> AsyncIterator[workflow_pb2.SubmitStepsResponse]:
        self.streams += 1
        calls = StepCalls("SubmitSteps", self.SubmitStep, workflow_pb2.SubmitStepsResponse, keeps_deadlines=True)
        return calls.serve(requests, context)

    async def SubmitStep(  # noqa: N802
        self, request: workflow_pb2.SubmitStepRequest, context: Any
    ) -> AsyncGenerator[workflow_pb2.StepEvent, None]:
        if self.error is not None:
            raise self.error
        try:
            async for event in super().SubmitStep(request, context):
                if event.HasField("finished"):
                    await self.go.wait()
                yield event
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[_Gateway, AsyncClient]]:
    gateway = _Gateway()
    async with serving(gateway) as address, AsyncClient(address) as client:
        yield gateway, client


async def test_steps_share_a_stream_and_each_has_its_own_output() -> None:
    async with connected() as (gateway, client):
        gateway.go.set()
        workflows = [await client.start_workflow(f"w{number}") for number in range(40)]
        outputs = [pack(range(number, number + 4)) for number in range(40)]
        steps = await asyncio.gather(
            *(
                workflow.run(agent="a", prompt=[1, 2, 3], forced_output=output)
                for workflow, output in zip(workflows, outputs, strict=True)
            )
        )
        assert [pack(step.token_ids) for step in steps] == outputs
        assert gateway.streams == 1


async def test_a_step_that_nobody_ends_ends_in_time_and_disturbs_no_other() -> None:
    async with connected() as (gateway, client):
        other = asyncio.create_task((await client.start_workflow("other")).run(agent="a", prompt=[1]))
        workflow = await client.start_workflow("w")
        with pytest.raises(DeadlineExceeded, match="in time"):
            await workflow.run(agent="a", prompt=[1], timeout_s=1.0)
        await eventually(lambda: gateway.cancelled == 1)
        gateway.go.set()
        assert (await other).text == "Hello, world"


async def test_leaving_a_step_cancels_it_alone() -> None:
    async with connected() as (gateway, client):
        other = asyncio.create_task((await client.start_workflow("other")).run(agent="a", prompt=[1]))
        stream = (await client.start_workflow("w")).stream(agent="a", prompt=[1])
        assert isinstance(await anext(stream), Accepted)
        assert isinstance(await anext(stream), Tokens)
        await stream.aclose()
        await eventually(lambda: gateway.cancelled == 1)
        gateway.go.set()
        assert (await other).text == "Hello, world"
        assert gateway.cancelled == 1


async def test_closing_the_client_cancels_its_steps() -> None:
    async with connected() as (gateway, client):
        stream = (await client.start_workflow("w")).stream(agent="a", prompt=[1])
        await anext(stream)
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            [event async for event in stream]
        await eventually(lambda: gateway.cancelled == 1)


async def test_an_error_says_when_and_whether_to_try_again() -> None:
    async with connected() as (gateway, client):
        workflow = await client.start_workflow("w")
        gateway.error = LimitExceeded("too many", "gateway.max_steps", 2.0)
        with pytest.raises(ResourceExhausted, match="too many") as caught:
            await workflow.run(agent="a", prompt=[1])
        assert caught.value.retry_after_s == 2.0
        gateway.error = Unavailable("no worker")
        with pytest.raises(Unavailable, match="no worker") as final:
            await workflow.run(agent="a", prompt=[1])
        assert not isinstance(final.value, TryAgain)
        assert gateway.streams == 1


async def test_a_step_too_large_for_a_message_is_refused_alone() -> None:
    async with connected() as (gateway, client):
        other = asyncio.create_task((await client.start_workflow("other")).run(agent="a", prompt=[1]))
        with pytest.raises(ResourceExhausted, match="too large"):
            await (await client.start_workflow("w")).run(agent="a", prompt=bytes(MAX_MESSAGE_BYTES))
        gateway.go.set()
        assert (await other).text == "Hello, world"


@pytest.mark.parametrize(("final", "times"), [(False, 5), (True, 1)])
async def test_a_step_is_sent_again_under_the_same_id_where_that_may_help(final: bool, times: int) -> None:
    gateway = FlakyGateway(final=final)
    with served(gateway) as address:
        async with AsyncClient(address) as client:
            workflow = await client.start_workflow()
            with pytest.raises(Unavailable):
                await workflow.run(agent="a", prompt="hello")
    assert len(gateway.steps) == times
    assert len(set(gateway.steps)) == 1


async def test_a_step_in_another_event_loop_is_refused_at_once() -> None:
    async with connected() as (gateway, client):
        gateway.go.set()
        workflow = await client.start_workflow("w")
        await workflow.run(agent="a", prompt=[1])

        async def elsewhere() -> None:
            with pytest.raises(FailedPrecondition, match="another event loop"):
                await workflow.run(agent="a", prompt=[1])

        await asyncio.to_thread(asyncio.run, elsewhere())
