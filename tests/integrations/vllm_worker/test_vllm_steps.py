"""A step on an engine with vLLM's contract: text, ends, usage, cancellation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.errors import InvalidArgument, ResourceExhausted, Unavailable
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.step_events import FinishReason
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from tests.integrations.vllm_worker.scripted import END, NAMESPACE, SHAPE, Rig, ScriptedEngine, stored

PROMPT = list(range(100))
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def step(prompt: Sequence[int] = PROMPT, sent: Sequence[int] = (), tenant: str = "", **sampling: Any) -> StepRequest:
    return StepRequest(
        id="step#0",
        workflow="w",
        agent="coder",
        step=0,
        namespace=replace(NAMESPACE, salt=tenant),
        prompt=pack(list(prompt)),
        sampling=SamplingParams(**{"max_tokens": 8, **sampling}),
        sent=pack(list(sent)),
        priority=3,
    )


async def outputs(rig: Rig, request: StepRequest) -> list[Output]:
    return [output async for output in rig.steps.run(request)]


def text_of(found: Sequence[Output]) -> str:
    return "".join(each.text for each in found)


def ids_of(found: Sequence[Output]) -> list[int]:
    return [token for each in found for token in each.tokens]


async def test_tokens_stream_and_the_usage_record_comes_last() -> None:
    rig = Rig(ScriptedEngine(cached=64))
    found = await outputs(rig, step(top_logprobs=1))
    assert (text_of(found), ids_of(found)) == ("abcdefgh", list(range(97, 105)))
    assert [each.finished for each in found] == [None] * 7 + [FinishReason.LENGTH]
    assert all(len(each.logprobs) == 1 for each in found)
    usage = found[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.computed_tokens, usage.generated_tokens) == (100, 36, 8)
    assert (usage.queue_s, usage.prefill_s, usage.decode_s) == (0.5, 1.0, 1.75)
    assert (usage.preemptions, usage.worker_id) == (2, "worker-0")
    (request,) = rig.engine.requests
    assert (request.tokens, request.salt, request.sampling["stop_token_ids"]) == (PROMPT, "", [END])


async def test_cached_tokens_are_told_by_the_tier_that_had_them() -> None:
    rig = Rig(ScriptedEngine(cached=96))
    rig.held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    rig.held.stored(stored(PROMPT[64:96], [b"three"], parent=b"two", medium="CPU"))
    usage = (await outputs(rig, step()))[-1].usage
    assert usage is not None
    assert usage.captured == usage.delivered == {Tier.GPU: 64, Tier.HOST: 32}
    assert usage.available_tokens == 96


async def test_without_a_connector_all_cached_tokens_are_the_gpus() -> None:
    """Those, too, that another step computed while this one was queued."""
    rig = Rig(ScriptedEngine(cached=96, shape=replace(SHAPE, takes_hints=False)))
    usage = (await outputs(rig, step()))[-1].usage
    assert usage is not None
    assert usage.captured == usage.delivered == {Tier.GPU: 96}
    assert rig.engine.requests[0].transfer is None


@pytest.mark.parametrize(
    ("sampling", "text", "tokens", "reason"),
    [
        ({"stop": ("cd",)}, "ab", 4, FinishReason.STOP),
        ({"stop": ("hz",)}, "abcdefgh", 8, FinishReason.LENGTH),
        ({"max_tokens": 26, "stop": ("z",)}, ALPHABET[:25], 26, FinishReason.STOP),
    ],
)
async def test_stop_strings(sampling: Any, text: str, tokens: int, reason: FinishReason) -> None:
    rig = Rig(ScriptedEngine())
    found = await outputs(rig, step(**sampling))
    assert (text_of(found), len(ids_of(found)), found[-1].finished) == (text, tokens, reason)
    assert rig.engine.closed == ["step#0"]
    usage = found[-1].usage
    assert usage is not None
    assert (usage.queue_s, usage.prefill_s, usage.decode_s) == (0.5, 1.0, 0.25 * (tokens - 1))
    assert usage.preemptions == 2


async def test_the_end_token_ends_a_step_unless_it_is_ignored() -> None:
    found = await outputs(Rig(ScriptedEngine([97, 98, END, 99])), step())
    assert (text_of(found), ids_of(found), found[-1].finished) == ("ab", [97, 98, END], FinishReason.STOP)
    found = await outputs(Rig(ScriptedEngine([97, 98, END, 99])), step(ignore_eos=True))
    assert (text_of(found), len(ids_of(found)), found[-1].finished) == ("abc", 4, FinishReason.LENGTH)


async def test_a_step_goes_on_after_what_a_lost_worker_has_sent() -> None:
    rig = Rig(ScriptedEngine(range(100, 123)))
    found = await outputs(rig, step(sent=[97, 98, 99]))
    assert (text_of(found), ids_of(found)) == ("abcdefgh", list(range(100, 105)))
    assert rig.engine.requests[0].tokens == [*PROMPT, 97, 98, 99]
    assert found[-1].usage is not None
    assert (found[-1].usage.prompt_tokens, found[-1].usage.generated_tokens) == (100, 8)


@pytest.mark.parametrize(
    ("sent", "sampling", "reason"),
    [
        (range(97, 105), {}, FinishReason.LENGTH),
        ([97, END], {}, FinishReason.STOP),
        ([97, 98], {"stop": ("b",)}, FinishReason.STOP),
    ],
)
async def test_a_step_that_had_ended_there_is_not_run_again(sent: Sequence[int], sampling: Any, reason: FinishReason) -> None:
    rig = Rig(ScriptedEngine())
    (ended,) = await outputs(rig, step(sent=sent, **sampling))
    assert (ended.finished, ended.tokens, rig.engine.requests) == (reason, (), [])


async def test_output_fits_in_the_context() -> None:
    rig = Rig(ScriptedEngine([97] * 600))
    found = await outputs(rig, step([1] * 500, max_tokens=100))
    assert len(ids_of(found)) == SHAPE.max_context - 500


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (step([1] * 512), r"^prompt: has 512 tokens, and this worker takes at most 511$"),
        (step([]), r"^prompt: "),
        (step([5, 1000]), r"^prompt\.token_ids: id 1000 at position 1 is outside the vocabulary"),
        (step(sent=[-1]), r"^sent: id -1"),
    ],
)
async def test_what_vllm_cannot_take_is_refused_by_its_name(request_: StepRequest, problem: str) -> None:
    rig = Rig(ScriptedEngine())
    with pytest.raises(InvalidArgument, match=problem):
        await outputs(rig, request_)
    assert (rig.engine.requests, rig.steps.running + rig.steps.waiting) == ([], 0)


async def test_closing_a_step_early_ends_it_in_vllm() -> None:
    rig = Rig(ScriptedEngine())
    rig.engine.may_go_on.clear()
    running = rig.steps.run(step())
    await anext(running)
    assert (rig.steps.running, rig.steps.waiting) == (1, 0)
    await rig.steps.cancel("step#0")
    assert rig.engine.aborted == ["step#0"]
    await running.aclose()
    assert (rig.engine.closed, rig.steps.running) == (["step#0"], 0)
    await rig.steps.cancel("step#0")
    assert rig.engine.aborted == ["step#0"]


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_step_that_vllm_gives_up_can_be_run_elsewhere(reason: str) -> None:
    rig = Rig(ScriptedEngine())
    rig.engine.ends_with = reason
    with pytest.raises(Unavailable, match=f"vLLM has ended the step: {reason}"):
        await outputs(rig, step())


async def test_the_queue_is_bounded() -> None:
    rig = Rig(ScriptedEngine(), EngineConfig(max_running=1, max_waiting=1))
    rig.engine.may_go_on.clear()
    running = [rig.steps.run(replace(step(), id=f"step#{number}")) for number in range(2)]
    for each in running:
        await anext(each)
    assert rig.steps.running + rig.steps.waiting == 2
    with pytest.raises(ResourceExhausted, match=r"engine\.max_waiting"):
        await outputs(rig, step())
    for each in running:
        await each.aclose()


async def test_vllm_is_told_whose_step_it_is_and_what_is_forecast() -> None:
    rig = Rig(ScriptedEngine(shape=replace(SHAPE, by_priority=True)))
    rig.hints.heard(Forecast("w", 7, 1.0, ()))
    await outputs(rig, step(tenant="tenant"))
    (request,) = rig.engine.requests
    assert (request.salt, request.priority) == ("tenant", 3)
    assert request.transfer == {"pbkv": {"workflow": "w", "agent": "coder"}}
    assert request.hints is not None
    assert [(each.action_type, each.payload["epoch"]) for each in request.hints.actions] == [("retain", 7)]


async def test_priorities_are_kept_from_an_engine_that_does_not_know_them() -> None:
    rig = Rig(ScriptedEngine())
    await outputs(rig, step())
    assert rig.engine.requests[0].priority == 0
