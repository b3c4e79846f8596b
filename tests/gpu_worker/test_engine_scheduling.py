"""Queueing, limits, cancellation, resumption and replay."""

from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.step_events import FinishReason
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import Result, collect, decode, ids, make_engine, request, run


@pytest.fixture
def model(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["llama"]


def test_cancelling_frees_blocks_at_once(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=40)
    results: dict[str, Result] = {}
    for number in range(4):
        engine.submit(request(model, str(number), ids(70, number), max_tokens=50))
    collect(engine, results, steps=6)
    assert engine.cache.locked_blocks(Tier.GPU) > 0
    for number in range(4):
        engine.cancel(str(number))
        engine.cancel(str(number))  # a second time does nothing
        engine.cache.check_integrity()
    assert engine.cache.locked_blocks(Tier.GPU) == 0
    assert not engine.busy
    assert engine.scheduler.waiting == 0


def test_a_waiting_step_can_be_cancelled(model: LoadedModel) -> None:
    engine = make_engine(model, max_running=1)
    engine.submit(request(model, "0", ids(20), max_tokens=5))
    engine.submit(request(model, "1", ids(20, 1), max_tokens=5))
    engine.cancel("1")
    results: dict[str, Result] = {}
    collect(engine, results)
    assert set(results) == {"0"}


def test_higher_priority_goes_first_then_order_of_arrival(model: LoadedModel) -> None:
    engine = make_engine(model, max_running=1)
    for name, priority in (("a", 0), ("b", 0), ("c", 5), ("d", 5)):
        engine.submit(request(model, name, ids(20), max_tokens=2, priority=priority))
    finished: list[str] = []
    while engine.busy:
        finished += [output.request_id for output in engine.step() if output.finished]
    assert finished == ["c", "d", "a", "b"]


def test_a_full_queue_refuses_and_keeps_working(model: LoadedModel) -> None:
    engine = make_engine(model, max_waiting=2)
    engine.submit(request(model, "0", ids(20)))
    engine.submit(request(model, "1", ids(20)))
    with pytest.raises(ResourceExhausted, match="max_waiting"):
        engine.submit(request(model, "2", ids(20)))
    results: dict[str, Result] = {}
    collect(engine, results)
    assert all(result.finished for result in results.values())
    assert set(results) == {"0", "1"}


@pytest.mark.parametrize(
    ("prompt", "field"),
    [([], "prompt"), ([1] * 2000, "prompt"), ([1, 4096], "prompt.token_ids"), ([1, -1], "prompt.token_ids")],
)
def test_invalid_prompts_are_refused_with_the_field(model: LoadedModel, prompt: list[int], field: str) -> None:
    engine = make_engine(model)
    with pytest.raises(InvalidArgument) as caught:
        engine.submit(request(model, "0", prompt))
    assert caught.value.field == field
    assert not engine.busy
    assert run(engine, request(model, "1", ids(20)))["1"].finished is FinishReason.LENGTH


def test_a_prompt_that_fills_the_pool_still_runs(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=8, host_blocks=0)
    assert engine.max_context == 7 * 16
    result = run(engine, request(model, "0", ids(engine.max_context - 1), max_tokens=500))["0"]
    assert result.finished is FinishReason.LENGTH
    assert len(result.tokens) == 1


def test_forced_output_is_replayed_and_cached(model: LoadedModel) -> None:
    engine = make_engine(model)
    forced = ids(40, 9)
    result = run(engine, request(model, "0", ids(50), max_tokens=100, forced_output=pack(forced)))["0"]
    assert result.tokens == forced
    assert result.finished is FinishReason.LENGTH
    again = run(engine, request(model, "1", ids(50) + forced + [7, 8, 9]))["1"]
    assert again.usage is not None
    assert again.usage.delivered == {Tier.GPU: 80}


def test_forced_output_needs_permission(model: LoadedModel) -> None:
    engine = make_engine(model, allow_forced_output=False)
    with pytest.raises(FailedPrecondition, match="allow_forced_output"):
        engine.submit(request(model, "0", ids(5), forced_output=pack([1])))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 11}])
@pytest.mark.parametrize("sent", [1, 7, 19])
def test_a_step_continues_where_a_lost_worker_stopped(model: LoadedModel, sampling: dict[str, Any], sent: int) -> None:
    whole = run(make_engine(model), request(model, "0", ids(45), max_tokens=20, **sampling))["0"]
    rest = run(make_engine(model), request(model, "0", ids(45), max_tokens=20, sent=whole.tokens[:sent], **sampling))["0"]
    assert whole.tokens[:sent] + rest.tokens == whole.tokens
    assert rest.text == whole.text, "the text starts from the beginning of the output"
    assert rest.usage is not None
    assert rest.usage.generated_tokens == 20


def test_a_step_that_was_complete_when_its_worker_was_lost_just_ends(model: LoadedModel) -> None:
    whole = run(make_engine(model), request(model, "0", ids(45), max_tokens=6))["0"]
    again = run(make_engine(model), request(model, "0", ids(45), max_tokens=6, sent=whole.tokens))["0"]
    assert again.tokens == []
    assert (again.finished, again.text) == (whole.finished, whole.text)


def test_samples_do_not_depend_on_the_rest_of_the_batch(model: LoadedModel) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    alone = run(make_engine(model), request(model, "0", ids(33), **sampling))["0"]
    crowd = [request(model, str(n), ids(20 + n, n), temperature=1.0, seed=n) for n in range(1, 6)]
    beside = run(make_engine(model), *crowd, request(model, "0", ids(33), **sampling))["0"]
    assert alone.tokens == beside.tokens
    other = run(make_engine(model), request(model, "0", ids(33), temperature=1.0, seed=4))["0"]
    assert other.tokens != alone.tokens


def test_stop_strings_and_the_end_of_sequence(model: LoadedModel) -> None:
    plain = run(make_engine(model), request(model, "0", ids(30), max_tokens=12))["0"]
    stop = decode(plain.tokens[4:6])
    stopped = run(make_engine(model), request(model, "0", ids(30), max_tokens=12, stop=(stop,)))["0"]
    first = plain.text.index(stop)
    assert (stopped.finished, stopped.text) == (FinishReason.STOP, plain.text[:first])
    assert stopped.tokens == plain.tokens[: len(stopped.tokens)]
    assert len(stopped.tokens) == first + 2

    engine = make_engine(replace(model, eos=frozenset({plain.tokens[3]})))
    ended = run(engine, request(model, "0", ids(30), max_tokens=12, ignore_eos=False))["0"]
    assert ended.finished is FinishReason.STOP
    assert ended.tokens == plain.tokens[: plain.tokens.index(plain.tokens[3]) + 1]


def test_tenants_do_not_share(model: LoadedModel) -> None:
    engine = make_engine(model)
    mine = request(model, "0", ids(60))
    theirs = replace(mine, id="1", namespace=replace(mine.namespace, salt="other"))
    run(engine, mine)
    usage = run(engine, theirs)["1"].usage
    assert usage is not None
    assert usage.delivered == usage.captured == {}


def test_times_add_up(model: LoadedModel) -> None:
    usage = run(make_engine(model), request(model, "0", ids(100), max_tokens=10))["0"].usage
    assert usage is not None
    assert min(usage.queue_s, usage.load_s, usage.prefill_s, usage.decode_s) >= 0
    assert usage.prefill_s > 0
    assert usage.decode_s > 0
    assert usage.worker_id == "w"
