"""Steps that share a prefix while it is being computed: the later ones wait for it where that is faster."""

import random
from dataclasses import replace

import pytest

from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import Result, collect, ids, make_engine, reference, request, run

WAITS = "admission_waits_for_prefix"


@pytest.fixture
def model(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["llama"]


def fan_out(model: LoadedModel, shared: int, tails: list[int], workflow: str = "wf") -> list[StepRequest]:
    """Steps whose prompts share their first tokens, and have tails of those lengths."""
    return [request(model, f"{workflow}/{n}", ids(shared) + ids(tail, 1 + n), workflow, step=n) for n, tail in enumerate(tails)]


def usage_of(results: dict[str, Result], name: str) -> Usage:
    usage = results[name].usage
    assert usage is not None
    return usage


def test_of_parallel_steps_with_one_prefix_only_the_first_computes_it(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=100)
    steps = fan_out(model, 352, [32, 40, 25])
    results = run(engine, *steps)
    assert [usage_of(results, step.id).delivered for step in steps] == [{}, {Tier.GPU: 352}, {Tier.GPU: 352}]
    assert [usage_of(results, step.id).computed_tokens for step in steps] == [384, 40, 25]
    assert engine.scheduler.decisions[WAITS] == 2
    for step in steps:
        prompt = ids(352) + ids({0: 32, 1: 40, 2: 25}[step.step], 1 + step.step)
        assert results[step.id].tokens == reference(model, prompt, 8)


def test_a_prefix_of_several_chunks_is_waited_for(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=128)
    results = run(engine, *fan_out(model, 320, [20, 20]))
    assert usage_of(results, "wf/1").computed_tokens == 20


def test_what_arrives_while_the_prefix_is_computed_waits_too(model: LoadedModel) -> None:
    """Prefills are measured as slow, so that no wait ends before the prefix is there, however busy the machine is."""
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=128)
    engine.scheduler.compute_seconds = lambda tokens: 3600.0
    first, second = fan_out(model, 320, [20, 20])
    results: dict[str, Result] = {}
    engine.submit(first)
    collect(engine, results, steps=2)
    engine.submit(second)
    collect(engine, results)
    assert usage_of(results, "wf/1").computed_tokens == 20


def test_nothing_waits_for_a_short_prefix_of_a_long_prompt(model: LoadedModel) -> None:
    """Sixteen tokens are computed faster than the chunk that they are in."""
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=128)
    results = run(engine, *fan_out(model, 16, [600, 40]))
    assert engine.scheduler.decisions[WAITS] == 0
    assert usage_of(results, "wf/1").computed_tokens == 56


def test_steps_without_the_prefix_go_first_meanwhile(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=192)
    results: dict[str, Result] = {}
    for step in [*fan_out(model, 320, [20, 20]), *fan_out(model, 0, [30], "other")]:
        engine.submit(step)
    collect(engine, results, steps=1)
    assert engine.scheduler.waiting == 1
    assert results["other/0"].tokens, "it did not have to wait with the second"


def test_tenants_do_not_wait_for_one_another(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=100)
    first, second = fan_out(model, 160, [10, 10])
    run(engine, first, replace(second, namespace=replace(second.namespace, salt="other")))
    assert engine.scheduler.decisions[WAITS] == 0


@pytest.mark.parametrize("after", [0, 1, 2])
def test_when_the_first_is_cancelled_the_next_computes_the_prefix(model: LoadedModel, after: int) -> None:
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=128)
    first, *others = fan_out(model, 320, [20, 20, 20])
    results: dict[str, Result] = {}
    for step in (first, *others):
        engine.submit(step)
    collect(engine, results, steps=after)
    engine.cancel(first.id)
    collect(engine, results)
    assert usage_of(results, "wf/1").computed_tokens == 340 - 64 * after
    assert usage_of(results, "wf/2").computed_tokens == 20


def test_a_step_that_waits_can_be_cancelled(model: LoadedModel) -> None:
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=128)
    results: dict[str, Result] = {}
    for step in fan_out(model, 320, [20, 20]):
        engine.submit(step)
    collect(engine, results, steps=1)
    engine.cancel("wf/1")
    assert engine.scheduler.waiting == 0
    collect(engine, results)
    assert set(results) == {"wf/0"}


def test_a_wait_takes_no_longer_than_computing_the_prefix_would(model: LoadedModel) -> None:
    """The rate of prefills is measured as immensely fast, so a wait is over as soon as it has begun."""
    engine = make_engine(model, gpu_blocks=200, prefill_chunk_tokens=64, max_batch_tokens=128)
    results: dict[str, Result] = {}
    engine.scheduler.compute_seconds = lambda tokens: 0.0
    for step in fan_out(model, 320, [20, 20]):
        engine.submit(step)
    collect(engine, results)
    assert engine.scheduler.decisions[WAITS] == 1
    assert usage_of(results, "wf/1").computed_tokens == 340 - 64, "admitted right after the first chunk"


@pytest.mark.parametrize("blocks", [30, 40, 60])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_the_same_however_much_is_shared_and_however_little_room_there_is(
    model: LoadedModel, blocks: int, seed: int
) -> None:
    generator = random.Random(seed)
    engine = make_engine(model, gpu_blocks=blocks, host_blocks=20, late=seed, prefill_chunk_tokens=32, max_batch_tokens=64)
    prompts = [ids(16 * generator.randrange(1, 12)) + ids(generator.randrange(1, 40), n) for n in range(12)]
    results: dict[str, Result] = {}
    for number, prompt in enumerate(prompts):
        engine.submit(request(model, str(number), prompt, f"wf{number % 3}"))
        collect(engine, results, steps=generator.randrange(3))
    collect(engine, results)
    for number, prompt in enumerate(prompts):
        assert results[str(number)].tokens == reference(model, prompt, 8)
