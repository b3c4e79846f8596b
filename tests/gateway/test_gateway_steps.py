"""Steps that finish, and steps that are cancelled."""

import grpc
import pytest

from pbkv_cluster.core.tokens import pack, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.peers import CONTEXT, ScriptedWorker, answer_tokens
from tests.gateway.rig import Answer, codec, read, refused, running, step_request, until


async def test_a_step_streams_accepted_then_tokens_then_finished() -> None:
    worker = ScriptedWorker("w0", captured={Tier.GPU: 16})
    async with running(worker) as rig:
        workflow = await rig.start_workflow(tenant="acme")
        answer = await rig.run(workflow, call_site="plan", priority=3)
        (accepted,), (finished,) = answer.accepted, answer.finished
        assert (accepted.step, accepted.worker_id, accepted.prompt_tokens) == (0, "w0", 16)
        assert answer.token_ids == answer_tokens(types_pb2.Sampling(seed=5, max_tokens=4))
        assert answer.text == "".join(map(chr, answer.token_ids))
        assert finished.reason == types_pb2.FINISH_REASON_LENGTH
        usage = answer.usage
        assert (usage.prompt_tokens, usage.generated_tokens, usage.retries, usage.worker_id) == (16, 4, 0, "w0")
        assert sum(usage.delivered.values()) <= sum(usage.captured.values()) <= usage.available_tokens <= usage.prompt_tokens
        assert 0.0 < usage.ttft_s <= usage.total_s
        (request,) = worker.requests
        assert (request.workflow_id, request.agent_id, request.HasField("parent_step")) == (workflow, "agent", False)
        assert (request.tenant, request.priority, request.step) == ("acme", 3, 0)
        assert not request.sent.data


async def test_steps_of_a_workflow_count_up() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow = await rig.start_workflow()
        assert [(await rig.run(workflow)).accepted[0].step for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (types_pb2.Prompt(text="héllo"), list("héllo".encode())),
        (types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack([0, 256, 7]))), [0, 256, 7]),
        (
            types_pb2.Prompt(
                messages=types_pb2.ChatMessages(
                    messages=[
                        types_pb2.ChatMessage(role="user", content="hi"),
                        types_pb2.ChatMessage(role="assistant", content=""),
                    ]
                )
            ),
            list(b"user:hi;assistant:;"),
        ),
    ],
    ids=["text", "token_ids", "messages"],
)
async def test_a_prompt_of_any_form_reaches_the_worker_as_tokens(prompt: types_pb2.Prompt, expected: list[int]) -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        await rig.run(await rig.start_workflow(), prompt=prompt)
        assert unpack(worker.requests[0].prompt.data) == expected


async def test_the_gateway_fills_in_every_sampling_default() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        await rig.run(await rig.start_workflow(), sampling=types_pb2.Sampling())
        sampling = worker.requests[0].sampling
        assert all(sampling.HasField(name) for name in ("max_tokens", "temperature", "top_p", "seed"))
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (128, 0.0, 1.0)


async def test_max_tokens_is_cut_to_the_context() -> None:
    worker = ScriptedWorker("w0")
    prompt = types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack([1] * (CONTEXT - 3))))
    async with running(worker) as rig:
        answer = await rig.run(await rig.start_workflow(), prompt=prompt, sampling=types_pb2.Sampling(max_tokens=10_000))
        assert worker.requests[0].sampling.max_tokens == 3
        assert len(answer.token_ids) == 3


async def test_forced_output_passes_where_the_server_replays() -> None:
    worker = ScriptedWorker("w0")
    sampling = types_pb2.Sampling(max_tokens=2, forced_output=types_pb2.PackedTokens(data=pack([9, 8])))
    async with running(worker, engine={"allow_forced_output": True}) as rig:
        workflow = await rig.start_workflow()
        await rig.run(workflow, sampling=sampling)
        assert unpack(worker.requests[0].sampling.forced_output.data) == [9, 8]
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "sampling.forced_output: id 257 at position 1"):
            sampling.forced_output.data = pack([1, 257])
            await rig.run(workflow, sampling=sampling)


async def test_a_client_that_cancels_cancels_the_worker() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        call = rig.submit(workflow)
        answer = Answer()
        while len(answer.token_ids) < 2:
            answer.add(await call.read())
        call.cancel()
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        await rig.sees(lambda status: status.running_steps == 0, "the step is gone")
        assert (await rig.status()).decisions["step_cancelled"] == 1
        worker.go.set()
        assert len((await rig.run(workflow)).token_ids) == 4


async def test_the_clients_deadline_ends_the_step_on_the_worker() -> None:
    worker = ScriptedWorker("w0", stop_at=0)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            await read(rig.stub.SubmitStep(step_request(workflow), timeout=0.3))
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        await rig.sees(lambda status: status.running_steps == 0, "the step is gone")


async def test_more_steps_than_allowed_are_refused_at_once() -> None:
    worker = ScriptedWorker("w0", stop_at=0)
    async with running(worker, max_steps=2) as rig:
        workflow = await rig.start_workflow()
        calls = [rig.submit(workflow) for _ in range(2)]
        await rig.sees(lambda status: status.running_steps == 2, "two steps run")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "2 steps are in flight"):
            await rig.run(workflow)
        worker.go.set()
        for call in calls:
            assert len((await read(call)).token_ids) == 4
        assert len((await rig.run(workflow)).token_ids) == 4


async def test_available_counts_what_an_infinite_cache_would_have() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow, other = await rig.start_workflow(tenant="a"), await rig.start_workflow(tenant="b")
        text = "x" * 40
        first = await rig.run(workflow, prompt=types_pb2.Prompt(text=text), sampling=types_pb2.Sampling(max_tokens=9))
        assert first.usage.available_tokens == 0
        # 40 of the prompt and 8 of the output have KV; the ninth output token was never an input.
        again = await rig.run(workflow, prompt=types_pb2.Prompt(text=text + first.text + "y"))
        assert again.usage.available_tokens == 48
        assert (await rig.run(other, prompt=types_pb2.Prompt(text=text))).usage.available_tokens == 0
        exact = await rig.run(workflow, prompt=types_pb2.Prompt(text="x" * 32))
        assert exact.usage.available_tokens == 16, "the last token of a prompt is always computed"


def test_the_rigs_tokenizer_is_one_byte_a_token() -> None:
    assert unpack(codec().encode("az")) == [97, 122]
