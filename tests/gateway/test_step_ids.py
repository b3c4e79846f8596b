"""Steps with an id: submitted more than once, they run once."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from pbkv_cluster.core.sampling import SamplingOptions
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.resumption import Received, Resumption
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, Tokens
from pbkv_cluster.gateway.step.answers import Answer as StepOutput
from pbkv_cluster.gateway.step.request import StepRequest, TextPrompt
from pbkv_cluster.gateway.step.request_reader import WorkflowMoved
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from tests.gateway.pair import pair
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.gateway.rig import PATIENCE_S, Answer, read, refused, running, step_request, until

EIGHT = types_pb2.Sampling(max_tokens=8, seed=5)
WHOLE = answer_tokens(EIGHT)
TEXT = "".join(map(chr, WHOLE))


def after(ids: Sequence[int], characters: int, step: int | None = None) -> workflow_pb2.Resumption:
    return workflow_pb2.Resumption(token_ids=types_pb2.PackedTokens(data=pack(ids)), characters=characters, step=step)


async def test_racing_submits_at_both_gateways_run_once() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with pair(worker) as both:
        workflow = await both.a.start()
        answers = [Answer() for _ in range(6)]
        sides = [both.a, both.b] * 3
        calls = [
            asyncio.create_task(read(side.submit(workflow, step_id="one", sampling=EIGHT), answer))
            for side, answer in zip(sides, answers, strict=True)
        ]
        await until(lambda: all(len(answer.token_ids) == 2 for answer in answers), "all have what there is")
        worker.go.set()
        await asyncio.gather(*calls)
        assert len(worker.requests) == 1
        for answer in answers:
            assert (answer.token_ids, answer.text) == (WHOLE, TEXT)
            assert [accepted.step for accepted in answer.accepted] == [0]
            assert answer.usage.generated_tokens == 8
        status = await both.rig.status()
        assert status.totals.steps == 1
        assert (await both.a.run(workflow)).accepted[0].step == 1


async def test_a_step_that_has_finished_is_answered_from_its_record() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        first = await rig.run(workflow, step_id="one", sampling=EIGHT)
        again = await rig.run(workflow, step_id="one", sampling=EIGHT)
        rest = await rig.run(workflow, step_id="one", sampling=EIGHT, resume=after(WHOLE[:5], 3))
        assert (again.token_ids, again.text, again.usage) == (first.token_ids, first.text, first.usage)
        assert (rest.token_ids, rest.text) == (WHOLE[5:], TEXT[3:])
        assert len(worker.requests) == 1
        assert (await rig.status()).decisions["step_joined"] == 2


async def test_a_record_is_kept_within_its_bound_and_as_long_as_the_workflow() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker, step_record_bytes=3000) as rig:
        workflow = await rig.start_workflow()
        for name in ("one", "two", "three"):
            await rig.run(workflow, step_id=name)
        await rig.run(workflow, step_id="three")
        assert len(worker.requests) == 3
        assert (await rig.run(workflow, step_id="one")).token_ids == WHOLE[:4]
        assert len(worker.requests) == 4, "the oldest has been dropped"
        assert rig.gateway.submission.answers.size_bytes <= 3000
        await rig.end_workflow(workflow)
        assert rig.gateway.submission.answers.size_bytes == 0


async def test_a_step_whose_client_has_left_goes_on_from_what_there_is() -> None:
    worker = ScriptedWorker("w0", stop_at=3, hold_chars=1)
    async with running(worker) as rig:
        predictor = await rig.add_predictor()
        workflow = await rig.start_workflow()
        answer = Answer()
        call = rig.submit(workflow, step_id="one", sampling=EIGHT)
        reading = asyncio.create_task(read(call, answer))
        await until(lambda: len(answer.token_ids) == 3, "the first tokens have come")
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: worker.cancelled == 1, "the worker has stopped")
        worker.stop_at = -1
        rest = await rig.run(workflow, step_id="one", sampling=EIGHT, resume=after(WHOLE[:2], 1, step=0))
        assert (rest.token_ids, rest.text) == (WHOLE[2:], TEXT[1:])
        assert rest.accepted[0].step == 0
        assert list(worker.requests[1].sent.data) == list(pack(WHOLE[:3])), "as far as the gateway knows the output"
        await rig.end_workflow(workflow)
        await until(
            lambda: any(event.kind is EventKind.WORKFLOW_ENDED for event in predictor.of(workflow)), "all events have come"
        )
        assert [event.step for event in predictor.of(workflow) if event.kind is EventKind.STEP_STARTED] == [0]


async def test_who_follows_a_step_goes_on_with_it_when_the_first_client_leaves() -> None:
    worker = ScriptedWorker("w0", stop_at=3)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        call = rig.submit(workflow, step_id="one", sampling=EIGHT)
        first = asyncio.create_task(read(call))
        await worker.stopped.wait()
        answer = Answer()
        second = asyncio.create_task(read(rig.submit(workflow, step_id="one", sampling=EIGHT), answer))
        await until(lambda: len(answer.token_ids) == 3, "the second client has what there is")
        worker.stop_at = -1
        call.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await second
        assert (answer.token_ids, answer.text) == (WHOLE, TEXT)
        assert len(answer.accepted) == 1
        assert len(worker.requests) == 2


async def test_a_step_goes_on_at_a_gateway_that_knows_nothing_of_it() -> None:
    worker = ScriptedWorker("w0", hold_chars=2)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        rest = await rig.run(workflow, step_id="one", sampling=EIGHT, resume=after(WHOLE[:4], 2, step=3))
        assert (rest.token_ids, rest.text) == (WHOLE[4:], TEXT[2:])
        assert rest.accepted[0].step == 3
        assert rest.usage.generated_tokens == 8
        assert (await rig.run(workflow)).accepted[0].step == 4
        whole = await rig.run(workflow, step_id="two", sampling=EIGHT, resume=after(WHOLE, 8))
        assert (whole.token_ids, whole.text) == ([], "")
        assert whole.finished[0].reason == types_pb2.FINISH_REASON_LENGTH


async def test_a_step_that_has_failed_may_be_submitted_anew() -> None:
    worker = ScriptedWorker("w0", fail_with=grpc.StatusCode.INVALID_ARGUMENT)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await rig.run(workflow, step_id="one")
        worker.fail_with = None
        assert (await rig.run(workflow, step_id="one")).token_ids == WHOLE[:4]


async def test_without_a_seed_the_id_decides_what_is_drawn() -> None:
    worker = ScriptedWorker("w0")
    async with pair(worker) as both:
        for side in (both.a, both.b):
            workflow = await side.start()
            await side.run(workflow, step_id="one", sampling=types_pb2.Sampling(max_tokens=1))
            await side.run(workflow, step_id="two", sampling=types_pb2.Sampling(max_tokens=1))
        one, two, one_again, two_again = [request.sampling.seed for request in worker.requests]
        assert (one, two) == (one_again, two_again)
        assert one != two


async def test_what_cannot_be_gone_on_with_is_refused_by_name() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow = await rig.start_workflow()
        await rig.run(workflow, step_id="known", sampling=EIGHT)
        other = [token + 1 for token in WHOLE[:2]]
        wrong = [
            ("step_id: ", "", after(WHOLE[:2], 2)),
            ("resume.token_ids: are not", "known", after(other, 2)),
            ("resume.token_ids: more than", "new", after([*WHOLE, 97], 9)),
            ("resume.token_ids", "new", after([100_000], 1)),
            ("resume.step: ", "new", after([97], 1, step=1 << 20)),
            ("resume.step: ", "new", after([97], 1, step=-1)),
            ("resume.characters: ", "new", after([97], -1)),
        ]
        for problem, step_id, resume in wrong:
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, problem):
                await rig.run(workflow, step_id=step_id, sampling=EIGHT, resume=resume)


async def test_closing_a_call_ends_the_call_and_not_the_step() -> None:
    worker = ScriptedWorker("w0", stop_at=3)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        submission = rig.gateway.submission
        request = StepRequest(
            workflow, "agent", TextPrompt("hi"), sampling=SamplingOptions(max_tokens=8, seed=5), step_id="one"
        )
        step = submission.admit(0)
        events = aiter(submission.run(step, request))
        assert isinstance(await anext(events), Accepted)
        sent = b""
        while len(sent) < len(pack(WHOLE[:3])):
            output = await anext(events)
            assert isinstance(output, Tokens)
            sent += output.packed
        submission.close(step)
        (last,) = [event async for event in events]
        assert isinstance(last, Finished)
        assert last.reason is FinishReason.CANCELLED
        worker.stop_at = -1
        again = await rig.run(workflow, step_id="one", sampling=EIGHT)
        assert (again.token_ids, again.finished[0].reason) == (WHOLE, types_pb2.FINISH_REASON_LENGTH)


async def test_calls_that_follow_a_step_count_like_any_other() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with running(worker, limits={"tenant_steps": 2}) as rig:
        workflow = await rig.start_workflow(tenant="a")
        calls = [asyncio.create_task(read(rig.submit(workflow, step_id="one", sampling=EIGHT))) for _ in range(2)]
        await until(lambda: len(rig.gateway.submission.admission) == 2, "two calls are in flight")
        await worker.stopped.wait()
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "tenant 'a' has 2 steps"):
            await rig.run(workflow, step_id="one", sampling=EIGHT)
        worker.go.set()
        for answer in await asyncio.gather(*calls):
            assert answer.token_ids == WHOLE


async def test_a_step_that_another_gateway_runs_counts_at_both_and_runs_at_one() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with pair(worker) as both:
        workflow = await both.a.start()
        call = asyncio.create_task(read(both.b.submit(workflow, sampling=EIGHT)))
        await worker.stopped.wait()
        admissions = [side.gateway.submission.admission for side in (both.a, both.b)]
        assert [len(each) for each in admissions] == [1, 1]
        assert [each.running_here for each in admissions] == [1, 0]
        worker.go.set()
        assert (await call).token_ids == WHOLE


async def test_the_deadline_of_a_step_goes_with_it_to_another_gateway() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with pair(worker) as both:
        workflow = await both.a.start()
        call = asyncio.create_task(read(both.b.submit(workflow, sampling=EIGHT)))
        await worker.stopped.wait()
        held = both.a.gateway.workflows.workflows.peek(workflow)
        assert held is not None
        (step,) = held.running
        assert isinstance(step, Step)
        assert step.deadline is not None
        worker.go.set()
        await call


async def test_who_follows_a_step_that_moves_does_not_wait_for_ever() -> None:
    output, step = StepOutput(), Step(0.0, lambda step: None)
    output.begin(step, None)

    async def follow() -> None:
        async for _ in output.follow(Step(0.0, lambda step: None), Received()):
            pass

    following = asyncio.create_task(follow())
    for _ in range(3):
        await asyncio.sleep(0)
    output.fail(WorkflowMoved("moved"))
    with pytest.raises(WorkflowMoved):
        await asyncio.wait_for(following, PATIENCE_S)


def test_log_probabilities_are_kept_with_the_tokens_that_they_belong_to() -> None:
    output = StepOutput()
    output.begin(Step(0.0, lambda step: None), Resumption(0, pack([1, 2]), 2))
    known = tuple(TokenLogprobs(-float(number), ()) for number in (3, 4, 5))
    output.add(Tokens(pack([3, 4, 5]), "cde", known))
    whole, rest, tail = (output.missing(Received(0, bytearray(pack(list(range(1, have + 1)))), have)) for have in (0, 2, 4))
    assert whole is not None
    assert whole.logprobs == (), "of the first two none are known"
    assert rest is not None
    assert rest.logprobs == known
    assert tail is not None
    assert (tail.packed, tail.logprobs) == (pack([5]), known[2:])


async def test_a_call_that_follows_a_step_ends_at_its_own_deadline() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        first = asyncio.create_task(rig.run(workflow, step_id="same"))
        await worker.stopped.wait()
        stream: Any = rig.stub.SubmitSteps()
        request = workflow_pb2.SubmitStepsRequest()
        request.actions.add(call=1).begin.CopyFrom(
            workflow_pb2.SubmitStepsRequest.Begin(step=step_request(workflow, step_id="same"), timeout_s=0.2)
        )
        await stream.write(request)
        ends = list[types_pb2.CallEnd]()
        async with asyncio.timeout(PATIENCE_S):
            while not ends:
                ends += [event.end for event in (await stream.read()).events if event.HasField("end")]
        assert ends[0].code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert not first.done()
        worker.go.set()
        assert (await first).finished
        stream.cancel()
