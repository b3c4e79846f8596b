"""All steps of a worker over one stream: each as if it had a call of its own."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from pbkv_cluster.core.tokens import pack, unpack
from pbkv_cluster.core.workflow.step_events import FinishReason, Tokens
from pbkv_cluster.gateway.routing.step_link import FailureKind, StepLink, StepOutcome, StepStream, WorkerFailure
from pbkv_cluster.rpc.channel import MAX_MESSAGE_BYTES, connect
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.steps.step_streams import MAX_ACTIONS
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.polling import eventually


@asynccontextmanager
async def linked(worker: ScriptedWorker) -> AsyncIterator[StepLink]:
    await worker.start()
    async with connect(worker.address) as channel:
        link = StepLink(worker_pb2_grpc.WorkerServiceStub(channel))
        try:
            yield link
        finally:
            await link.close()
            await worker.server.stop(0)


def step(seed: int = 0, tokens: int = 8, name: str = "r") -> worker_pb2.RunStepRequest:
    return worker_pb2.RunStepRequest(
        request_id=name, workflow_id="w", sampling=types_pb2.Sampling(seed=seed, max_tokens=tokens), prompt=packed([1, 2])
    )


def packed(ids: list[int]) -> types_pb2.PackedTokens:
    return types_pb2.PackedTokens(data=pack(ids))


async def output_of(stream: StepStream) -> tuple[list[int], str, StepOutcome]:
    ids, text, outcome = list[int](), "", None
    async for event in stream:
        assert outcome is None, "something came after the outcome"
        if isinstance(event, Tokens):
            ids += unpack(event.packed)
            text += event.text
        else:
            assert isinstance(event, StepOutcome)
            outcome = event
    assert outcome is not None
    return ids, text, outcome


async def test_many_steps_at_once_each_have_their_own_output_in_order() -> None:
    async with linked(ScriptedWorker("w0")) as link:
        drawn = random.Random(7)
        steps = [step(seed, drawn.randrange(1, 60)) for seed in range(100)]
        outputs = await asyncio.gather(*(output_of(link.run(each)) for each in steps))
    for each, (ids, text, outcome) in zip(steps, outputs, strict=True):
        assert ids == answer_tokens(each.sampling)
        assert text == "".join(map(chr, ids))
        assert (outcome.reason, outcome.usage.generated_tokens) == (FinishReason.LENGTH, each.sampling.max_tokens)


async def test_a_cancelled_step_ends_at_the_worker_and_no_other_does() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with linked(worker) as link:
        first, second = link.run(step(1)), link.run(step(2))
        assert isinstance(await anext(first), Tokens)
        first.cancel()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(first)
        await eventually(lambda: worker.cancelled == 1)
        worker.go.set()
        ids, *_ = await output_of(second)
        assert ids == answer_tokens(step(2).sampling)
        assert worker.cancelled == 1


async def test_a_step_that_is_cancelled_before_it_was_sent_leaves_nothing_behind() -> None:
    worker = ScriptedWorker("w0")
    async with linked(worker) as link:
        stream = link.run(step(1))
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(stream)
        ids, *_ = await output_of(link.run(step(2)))
        assert ids == answer_tokens(step(2).sampling)


class _Stalled:
    """A worker, and its one stream, that takes nothing until it may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.written: list[worker_pb2.RunStepsRequest] = []

    def RunSteps(self) -> "_Stalled":  # noqa: N802
        return self

    async def write(self, request: worker_pb2.RunStepsRequest) -> None:
        await self.go.wait()
        self.written.append(request)

    async def __aiter__(self) -> AsyncIterator[worker_pb2.RunStepsResponse]:
        await asyncio.Event().wait()
        yield worker_pb2.RunStepsResponse()

    def cancel(self) -> None:
        pass


async def test_what_is_cancelled_while_a_worker_takes_nothing_is_never_sent() -> None:
    worker = _Stalled()
    link = StepLink(worker)  # type: ignore[arg-type]
    first = link.run(step(0))
    await asyncio.sleep(0)  # it is being written
    for seed in range(1, 100):
        link.run(step(seed)).cancel()
    first.cancel()
    last = link.run(step(100))
    worker.go.set()
    await eventually(lambda: len(worker.written) == 2)
    actions = [action for request in worker.written for action in request.actions]
    assert [(action.WhichOneof("what"), action.begin.step.sampling.seed) for action in actions] == [
        ("begin", 0),
        ("cancel", 0),
        ("begin", 100),
    ]
    last.cancel()
    await link.close()


async def test_a_message_has_no_more_actions_than_a_server_takes() -> None:
    worker = _Stalled()
    worker.go.set()
    link = StepLink(worker)  # type: ignore[arg-type]
    streams = [link.run(step(seed)) for seed in range(MAX_ACTIONS + 1)]
    await eventually(lambda: sum(len(request.actions) for request in worker.written) == len(streams))
    for stream in streams:
        stream.cancel()
    await eventually(lambda: sum(len(request.actions) for request in worker.written) == 2 * len(streams))
    assert [len(request.actions) for request in worker.written] == [MAX_ACTIONS, 1] * 2
    await link.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, FailureKind.LOST),
        (grpc.StatusCode.CANCELLED, FailureKind.LOST),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, FailureKind.FULL),
        (grpc.StatusCode.INTERNAL, FailureKind.DEFECT),
        (grpc.StatusCode.INVALID_ARGUMENT, FailureKind.REFUSED),
    ],
)
async def test_how_a_worker_fails_a_step_is_told_and_the_stream_lives_on(code: grpc.StatusCode, kind: FailureKind) -> None:
    worker = ScriptedWorker("w0", fail_with=code)
    async with linked(worker) as link:
        with pytest.raises(WorkerFailure, match="scripted") as caught:
            await output_of(link.run(step()))
        assert caught.value.kind is kind
        worker.fail_with = None
        assert (await output_of(link.run(step())))[0] == answer_tokens(step().sampling)


async def test_a_step_that_ends_without_an_outcome_is_lost() -> None:
    async with linked(ScriptedWorker("w0", stop_at=3, end_early=True)) as link:
        with pytest.raises(WorkerFailure, match="ended unfinished") as caught:
            await output_of(link.run(step()))
        assert caught.value.kind is FailureKind.LOST


async def test_a_lost_connection_loses_its_steps_and_the_next_one_finds_the_worker_that_is_back() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with linked(worker) as link:
        streams = [link.run(step(seed)) for seed in range(3)]
        await worker.stopped.wait()
        port = int(worker.address.rsplit(":", 1)[1])
        await worker.server.stop(0)
        for stream in streams:
            with pytest.raises(WorkerFailure) as caught:
                await output_of(stream)
            assert caught.value.kind is FailureKind.LOST
        back = ScriptedWorker("w0")
        await back.start(port)
        try:
            await eventually(lambda: _runs(link), why=lambda: "the worker is not found again")
        finally:
            await back.server.stop(0)


async def _runs(link: StepLink) -> bool:
    try:
        return (await output_of(link.run(step(5))))[0] == answer_tokens(step(5).sampling)
    except WorkerFailure:
        return False


async def test_a_step_too_large_for_a_message_is_refused_and_disturbs_nobody() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with linked(worker) as link:
        running = link.run(step(1))
        await worker.stopped.wait()
        large = step(2)
        large.prompt.data = bytes(MAX_MESSAGE_BYTES)
        with pytest.raises(WorkerFailure, match="too large") as caught:
            await output_of(link.run(large))
        assert caught.value.kind is FailureKind.REFUSED
        worker.go.set()
        assert (await output_of(running))[0] == answer_tokens(step(1).sampling)


async def test_an_event_that_cannot_be_read_ends_its_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with linked(worker) as link:
        first, second = link.run(step(1)), link.run(step(2))

        def take(event: worker_pb2.RunStepEvent) -> None:
            raise ValueError("nonsense")

        monkeypatch.setattr(first, "take", take)
        with pytest.raises(WorkerFailure, match="cannot be read: nonsense") as caught:
            await output_of(first)
        assert caught.value.kind is FailureKind.DEFECT
        await eventually(lambda: worker.cancelled == 1)
        worker.go.set()
        assert (await output_of(second))[0] == answer_tokens(step(2).sampling)


async def test_closing_the_link_cancels_its_steps() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with linked(worker) as link:
        stream = link.run(step())
        await worker.stopped.wait()
        await link.close()
        with pytest.raises(asyncio.CancelledError):
            await output_of(stream)
        await eventually(lambda: worker.cancelled == 1)


class _Requests:
    """Requests of a caller that are made by hand."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[worker_pb2.RunStepsRequest | None] = asyncio.Queue()

    def begin(self, call: int, request: worker_pb2.RunStepRequest) -> None:
        begin = worker_pb2.RunStepsRequest.Begin(step=request)
        self.queue.put_nowait(worker_pb2.RunStepsRequest(actions=[worker_pb2.RunStepsRequest.Action(call=call, begin=begin)]))

    async def __aiter__(self) -> AsyncIterator[worker_pb2.RunStepsRequest]:
        while (request := await self.queue.get()) is not None:
            yield request


class _Context:
    def add_done_callback(self, callback: object) -> None:
        pass


async def test_a_stream_ends_with_its_last_step_when_the_worker_stops_and_takes_no_more() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    calls, requests = StepCalls("RunSteps", worker.RunStep, worker_pb2.RunStepsResponse), _Requests()
    requests.begin(1, step())
    seen = list[worker_pb2.RunStepsResponse.Event]()

    async def serve() -> None:
        async for response in calls.serve(aiter(requests), _Context()):
            seen.extend(response.events)

    serving = asyncio.create_task(serve())
    await worker.stopped.wait()
    calls.finish()
    requests.begin(2, step())
    await eventually(lambda: any(event.call == 2 and event.end.code == grpc.StatusCode.UNAVAILABLE.value[0] for event in seen))
    worker.go.set()
    await serving
    assert [event.end.code for event in seen if event.call == 1 and event.HasField("end")] == [0]


async def test_a_caller_that_takes_nothing_makes_its_steps_wait() -> None:
    made = 0

    async def endless(request: object, context: object) -> AsyncIterator[worker_pb2.RunStepEvent]:
        nonlocal made
        while True:
            made += 1
            yield worker_pb2.RunStepEvent(tokens=worker_pb2.RunStepEvent.Tokens(text="x" * (1 << 16)))
            await asyncio.sleep(0)

    requests = _Requests()
    requests.begin(1, step())
    stream = StepCalls("RunSteps", endless, worker_pb2.RunStepsResponse).serve(aiter(requests), _Context())  # type: ignore[arg-type]
    await anext(stream)
    before = -1
    while made != before:  # until it makes no more
        before = made
        for _ in range(1000):
            await asyncio.sleep(0)
    assert made < 200, "a caller that does not read fills memory"
    await anext(stream)
    await eventually(lambda: made > before)
    await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("timeout_s", "code"), [(0.05, grpc.StatusCode.DEADLINE_EXCEEDED), (0.0, grpc.StatusCode.INTERNAL)])
async def test_a_step_s_own_deadline_is_told_from_other_time_outs(timeout_s: float, code: grpc.StatusCode) -> None:
    async def run(request: object, context: object) -> AsyncIterator[worker_pb2.RunStepEvent]:
        if not timeout_s:
            raise TimeoutError("something inside")
        await asyncio.Event().wait()
        yield worker_pb2.RunStepEvent()

    requests = _Requests()
    begin = worker_pb2.RunStepsRequest.Begin(step=step(), timeout_s=timeout_s)
    requests.queue.put_nowait(worker_pb2.RunStepsRequest(actions=[worker_pb2.RunStepsRequest.Action(call=1, begin=begin)]))
    stream = StepCalls("RunSteps", run, worker_pb2.RunStepsResponse).serve(aiter(requests), _Context())  # type: ignore[arg-type]
    (event,) = (await anext(stream)).events
    assert event.end.code == code.value[0]
    await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("nonsense", ["no action", "a number twice"])
async def test_nonsense_is_refused_by_name(nonsense: str) -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    calls, requests = StepCalls("RunSteps", worker.RunStep, worker_pb2.RunStepsResponse), _Requests()
    if nonsense == "no action":
        requests.queue.put_nowait(worker_pb2.RunStepsRequest(actions=[worker_pb2.RunStepsRequest.Action(call=1)]))
    else:
        requests.begin(1, step())
        requests.begin(1, step())
    stream = calls.serve(aiter(requests), _Context())
    async for response in stream:
        if ends := [event.end for event in response.events if event.HasField("end")]:
            assert ends[0].code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            break
    await stream.aclose()  # type: ignore[attr-defined]
