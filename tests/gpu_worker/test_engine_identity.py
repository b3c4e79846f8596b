"""Greedy output is the same with the cache, without it and from plain `transformers`, with sharing, eviction and preemption."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import Result, collect, make_engine, reference, request, run

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
TOKENS = 10
Reference = Callable[[tuple[int, ...]], list[int]]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, models: dict[str, LoadedModel]) -> LoadedModel:
    return models[request.param]


@pytest.fixture(scope="session")
def llama_reference(models: dict[str, LoadedModel]) -> Reference:
    """Plain output of the llama, remembered."""
    return cache(lambda prompt: reference(models["llama"], list(prompt), TOKENS))


def prompts(seed: int, *lengths: int, shared: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    stem = [generator.randrange(5, 4000) for _ in range(shared)]
    return [stem + [generator.randrange(5, 4000) for _ in range(length)] for length in lengths]


def expect_plain(model: LoadedModel, given: list[list[int]], results: dict[str, Result]) -> None:
    for number, prompt in enumerate(given):
        assert results[str(number)].tokens == reference(model, prompt, TOKENS), f"prompt {number} came out differently"


def submit_all(model: LoadedModel, given: list[list[int]], **engine: Any) -> dict[str, Result]:
    return run(make_engine(model, **engine), *(request(model, str(n), p, max_tokens=TOKENS) for n, p in enumerate(given)))


def test_batch_of_mixed_lengths(model: LoadedModel) -> None:
    given = prompts(1, 1, 5, 16, 33, 100, 161)
    expect_plain(model, given, submit_all(model, given))


@pytest.mark.parametrize("chunk", [16, 48, 100])
def test_chunked_prefill(model: LoadedModel, chunk: int) -> None:
    given = prompts(2, 150, 97, 31)
    expect_plain(model, given, submit_all(model, given, prefill_chunk_tokens=chunk, max_batch_tokens=128))


def test_shared_prefixes_are_used_and_change_nothing(model: LoadedModel) -> None:
    given = prompts(3, 7, 40, 90, shared=70)
    engine = make_engine(model)
    results: dict[str, Result] = {}
    for number, prompt in enumerate(given):
        results |= run(engine, request(model, str(number), prompt, max_tokens=TOKENS))
    expect_plain(model, given, results)
    for later in ("1", "2"):
        usage = results[later].usage
        assert usage is not None
        assert usage.delivered == {Tier.GPU: 64}
        assert usage.computed_tokens == usage.prompt_tokens - 64


def test_output_is_a_prefix_too(model: LoadedModel) -> None:
    engine = make_engine(model)
    (first,) = prompts(4, 60)
    answer = run(engine, request(model, "0", first, max_tokens=40))["0"].tokens
    second = first + answer + [11, 12, 13]
    result = run(engine, request(model, "1", second, max_tokens=TOKENS))["1"]
    assert result.tokens == reference(model, second, TOKENS)
    assert result.usage is not None
    # All but the answer's last token have been through the model: 99 tokens are 6 blocks.
    assert result.usage.delivered == {Tier.GPU: 96}


@pytest.mark.parametrize("host_blocks", [0, 10, 60])
@pytest.mark.parametrize("late", [None, 1])
def test_eviction_and_loading_between_steps(model: LoadedModel, host_blocks: int, late: int | None) -> None:
    given = prompts(5, 100, 120, 90, 110, shared=32)
    engine = make_engine(model, late=late, gpu_blocks=14, host_blocks=host_blocks)
    for _ in range(2):
        results: dict[str, Result] = {}
        for number, prompt in enumerate(given):
            results |= run(engine, request(model, str(number), prompt, workflow=f"w{number}", max_tokens=TOKENS))
        expect_plain(model, given, results)
    decisions = engine.cache.tiers.decisions
    assert decisions["evict_active"] > 0
    assert (decisions["load"] > 0) == (host_blocks > 0)


def test_preemption_in_the_middle(model: LoadedModel) -> None:
    given = prompts(6, 60, 62, 58, 61)
    engine = make_engine(model, gpu_blocks=17, host_blocks=0)
    results = run(engine, *(request(model, str(n), p, max_tokens=40) for n, p in enumerate(given)))
    for number, prompt in enumerate(given):
        assert results[str(number)].tokens == reference(model, prompt, 40)
    assert engine.scheduler.decisions["preempt"] > 0


def test_two_sequences_that_compute_the_same_blocks_end_up_sharing_them(model: LoadedModel) -> None:
    (prompt,) = prompts(7, 90)
    engine = make_engine(model, prefill_chunk_tokens=32)
    results = run(engine, request(model, "0", prompt, max_tokens=TOKENS), request(model, "1", prompt, max_tokens=TOKENS))
    expect_plain(model, [prompt, prompt], results)
    assert engine.cache.tree.held == [(90 + TOKENS - 1) // 16, 0]


def test_a_damaged_block_is_a_miss_that_is_counted_and_dropped(models: dict[str, LoadedModel]) -> None:
    model, pools = models["llama"], list[KvStorage]()
    given = prompts(8, 100, 120, 90)
    engine = make_engine(model, pools=pools, late=1, gpu_blocks=14, host_blocks=60)
    for number, prompt in enumerate(given):
        run(engine, request(model, f"before {number}", prompt, workflow=f"w{number}", max_tokens=TOKENS))
    taken = engine.cache.tiers.take(12)  # all that is cached goes to the host
    assert taken is not None
    engine.cache.tiers.give(taken)
    held = engine.cache.used_blocks(Tier.HOST)
    pools[0].host += 1.0
    results = run(engine, request(model, "0", given[0], workflow="w0", max_tokens=TOKENS))
    expect_plain(model, given[:1], results)
    decisions = engine.cache.tiers.decisions
    usage = results["0"].usage
    assert usage is not None
    assert engine.scheduler.decisions["preempt_load_failed"] == 1
    assert decisions["load_failed"] == decisions["drop_spoiled"] == 6
    assert engine.cache.used_blocks(Tier.HOST) <= held - 6
    assert (usage.delivered, usage.computed_tokens) == ({}, 100), "what it is told to have got is what it got"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    gpu_blocks=st.integers(14, 40),
    host_blocks=st.sampled_from((0, 8, 64)),
    chunk=st.sampled_from((16, 64, 512)),
    late=st.booleans(),
    write_through=st.booleans(),
    damage=st.booleans(),
)
def test_any_schedule(
    models: dict[str, LoadedModel],
    llama_reference: Reference,
    seed: int,
    gpu_blocks: int,
    host_blocks: int,
    chunk: int,
    late: bool,
    write_through: bool,
    damage: bool,
) -> None:
    """Steps start, share and are cancelled, workflows end, the cache is cleared, blocks in host memory are damaged: what
    finishes equals plain greedy output.
    """
    pools: list[KvStorage] = []
    model, generator = models["llama"], random.Random(seed)
    # A few prompts with common prefixes, so that each reference is computed once and prefixes are shared.
    pool = [tuple(p) for shared in (16, 40, 64) for p in prompts(shared, 5, 30, 64, shared=shared)]
    policy = generator.choice(("lru", "pbkv-paper"))
    engine = make_engine(
        model,
        policy,
        seed if late else None,
        write_through,
        pools,
        gpu_blocks=gpu_blocks,
        host_blocks=host_blocks,
        prefill_chunk_tokens=chunk,
        max_running=6,
    )
    results: dict[str, Result] = {}
    asked: dict[str, tuple[int, ...]] = {}
    for number in range(14):
        name, prompt = str(number), generator.choice(pool)
        workflow, agent = f"w{generator.randrange(3)}", generator.choice("abc")
        asked[name] = prompt
        engine.submit(request(model, name, list(prompt), workflow, agent, number, max_tokens=TOKENS))
        collect(engine, results, generator.randrange(6))
        event = generator.random()
        if event < 0.15:
            engine.cancel(victim := generator.choice(list(asked)))
            if victim not in results or results[victim].finished is None:
                del asked[victim]
        elif event < 0.3:
            engine.cache.retire(f"w{generator.randrange(3)}")
        elif event < 0.35:
            engine.cache.clear()
        engine.cache.check_integrity()
        if damage and late and host_blocks:  # late: otherwise it could happen between the check and the copy of a load
            pools[0].host[generator.randrange(host_blocks)] += 1.0
    collect(engine, results)
    for name, prompt in asked.items():
        assert results[name].tokens == llama_reference(prompt)
        usage = results[name].usage
        assert usage is not None
        assert sum(usage.delivered.values()) <= sum(usage.captured.values()) <= usage.available_tokens <= usage.prompt_tokens
        if not usage.preemptions:
            assert usage.computed_tokens + sum(usage.delivered.values()) == usage.prompt_tokens
    engine.cache.clear()
    assert engine.cache.tree.nodes == 0
    engine.cache.check_integrity()
