"""What a caller of many steps over one stream may send: within bounds, each of its steps by itself."""

import asyncio
import gc
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.rpc.steps import outbox, step_calls
from pbkv_cluster.rpc.steps.step_calls import RunStep, StepCalls
from pbkv_cluster.rpc.steps.step_streams import MAX_ACTIONS
from pbkv_cluster.rpc.v1 import types_pb2
from pbkv_cluster.rpc.v1.workflow_pb2 import StepEvent, SubmitStepRequest, SubmitStepsRequest, SubmitStepsResponse
from tests.polling import eventually

Action = SubmitStepsRequest.Action
Begin = SubmitStepsRequest.Begin


class _Context:
    def add_done_callback(self, callback: object) -> None:
        pass


class _Caller:
    """Sends what it is told to, and takes answers when it is told to."""

    def __init__(self, run: RunStep) -> None:
        self.sent: asyncio.Queue[SubmitStepsRequest] = asyncio.Queue()
        self.taken = 0  # messages
        self.answers = StepCalls("SubmitSteps", run, SubmitStepsResponse).serve(self._messages(), _Context())

    def send(self, *actions: Action) -> None:
        self.sent.put_nowait(SubmitStepsRequest(actions=actions))

    async def ends(self, number: int = 1) -> list[types_pb2.CallEnd]:
        """Of the next calls that end, so many or more."""
        ends = list[types_pb2.CallEnd]()
        while len(ends) < number:
            async with asyncio.timeout(20):
                ends += [event.end for event in (await anext(self.answers)).events if event.HasField("end")]
        return ends

    async def _messages(self) -> AsyncGenerator[SubmitStepsRequest, None]:
        while True:
            message = await self.sent.get()
            self.taken += 1
            yield message
            del message


@asynccontextmanager
async def calling(run: RunStep) -> AsyncGenerator[_Caller, None]:
    caller = _Caller(run)
    try:
        yield caller
    finally:
        await caller.answers.aclose()  # type: ignore[attr-defined]


async def nothing(request: Any, context: Any) -> AsyncGenerator[StepEvent, None]:
    """A step without output."""
    return
    yield


async def forever(request: Any, context: Any) -> AsyncGenerator[StepEvent, None]:
    await asyncio.Event().wait()
    yield StepEvent()


def begin(call: int, **fields: Any) -> Action:
    return Action(call=call, begin=Begin(**fields))


async def test_a_caller_that_takes_no_answers_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING_BYTES", 10_000)
    async with calling(nothing) as caller:
        caller.send(Action(call=0))
        await caller.ends()
        for _ in range(40):
            caller.send(*[Action(call=1)] * 100)
        before = -1
        while caller.taken != before:  # until no more is taken
            before = caller.taken
            for _ in range(1000):
                await asyncio.sleep(0)
        assert caller.taken < 10, "its refusals fill memory"
        await caller.ends(4000)
        assert caller.taken == 41


async def test_a_message_with_too_many_actions_ends_the_stream() -> None:
    async with calling(nothing) as caller:
        caller.send(*[Action(call=1)] * MAX_ACTIONS)
        await caller.ends(MAX_ACTIONS)
        caller.send(*[Action(call=1)] * (MAX_ACTIONS + 1))
        with pytest.raises(InvalidArgument, match=f"actions: at most {MAX_ACTIONS}"):
            await caller.ends()


async def test_a_stream_runs_a_bounded_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_calls, "MAX_STEPS", 3)
    async with calling(forever) as caller:
        caller.send(*(begin(call) for call in range(4)))
        (end,) = await caller.ends()
        assert (end.code, end.details) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
            "the stream has 3 steps in flight already",
        )
        caller.send(Action(call=0, cancel=types_pb2.CallCancel()))
        await caller.ends()
        caller.send(begin(9, timeout_s=1e-3))
        assert (await caller.ends())[0].code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.mark.parametrize("timeout_s", [math.nan, math.inf, -math.inf, -1.0])
async def test_a_time_limit_that_is_none_is_refused_by_name(timeout_s: float) -> None:
    async with calling(nothing) as caller:
        caller.send(begin(1, timeout_s=timeout_s), begin(2, timeout_s=60.0))
        refused, done = await caller.ends(2)
        assert (refused.code, done.code) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], 0)
        assert refused.details.startswith("timeout_s: must be a finite number of seconds")


@pytest.mark.parametrize(
    "headers", [[types_pb2.Header(key="k", value="v" * 8192)], [types_pb2.Header(key="k", value="v")] * 300]
)
async def test_a_step_s_metadata_are_bounded(headers: list[types_pb2.Header]) -> None:
    async with calling(nothing) as caller:
        caller.send(begin(1, metadata=headers), begin(2, metadata=headers[:1] if len(headers) > 1 else ()))
        refused, done = await caller.ends(2)
        assert (refused.code, done.code) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], 0)
        assert refused.details.startswith("metadata: at most 8192 bytes")


async def test_a_step_keeps_no_more_in_memory_than_itself() -> None:
    def resident_bytes() -> int:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    running = 0

    async def run(request: Any, context: Any) -> AsyncGenerator[StepEvent, None]:
        nonlocal running
        if request.agent_id == "small":
            running += 1
            await asyncio.Event().wait()
        yield StepEvent()

    filler: Callable[[], SubmitStepRequest] = lambda: SubmitStepRequest(call_site="x" * (4 << 20))  # noqa: E731
    async with calling(run) as caller:
        before = resident_bytes()
        for number in range(32):
            caller.send(begin(2 * number, step=SubmitStepRequest(agent_id="small")), begin(2 * number + 1, step=filler()))
            await caller.ends()
        await eventually(lambda: running == 32)
        assert resident_bytes() - before < 64 << 20, "each has kept its neighbour, 128 MiB together"
