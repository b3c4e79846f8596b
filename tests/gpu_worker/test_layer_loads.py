"""Steps that begin while their blocks are still loaded, layer by layer: by threads, as late as may be, and in vain."""

import math
from typing import Any

import pytest

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import LateTorchEngine, Result, collect, ids, make_engine, reference, request, run

LAYERS = 2
PROMPT = ids(100, 1)
OTHER = ids(40, 2)


@pytest.fixture
def model(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["llama"]


def with_prompt_on_host(model: LoadedModel, **fields: Any) -> tuple[Engine, LateTorchEngine, KvStorage, Result]:
    """An engine whose host tier holds the blocks of `PROMPT`, and what came out when they were computed."""
    pools, transfers = list[KvStorage](), list[LateTorchEngine]()
    engine = make_engine(model, pools=pools, late=1, transfers=transfers, **{"gpu_blocks": 20, "host_blocks": 40, **fields})
    first = run(engine, request(model, "first", PROMPT, max_tokens=6))["first"]
    offload(engine)
    return engine, transfers[0], pools[0], first


def offload(engine: Engine) -> None:
    """All that is cached goes to the host."""
    room = engine.cache.tiers.room()
    taken = engine.cache.tiers.take(room)
    assert taken is not None
    engine.cache.tiers.give(taken)


def expect_same(result: Result, first: Result) -> None:
    assert result.tokens == first.tokens
    assert result.hidden == first.hidden != b""


def test_a_step_waits_for_each_layer_and_for_no_more(model: LoadedModel) -> None:
    engine, transfers, _, first = with_prompt_on_host(model)
    again = run(engine, request(model, "again", PROMPT, max_tokens=6))["again"]
    expect_same(again, first)
    assert transfers.waits == list(range(LAYERS)), "only in the batch that began before the load was done"
    assert engine.scheduler.decisions["begin_before_loaded"] == 1
    assert engine.scheduler.decisions["discard_load_failed"] == 0
    assert again.usage is not None
    assert (again.usage.delivered, again.usage.computed_tokens) == ({Tier.HOST: 96}, 4)


def test_without_it_a_step_waits_for_the_whole_load(model: LoadedModel) -> None:
    engine, transfers, _, first = with_prompt_on_host(model, load_by_layer=False)
    expect_same(run(engine, request(model, "again", PROMPT, max_tokens=6))["again"], first)
    assert not transfers.waits
    assert engine.scheduler.decisions["begin_before_loaded"] == 0


@pytest.mark.parametrize("layer", range(LAYERS))
def test_what_is_computed_on_a_load_that_fails_does_not_count(model: LoadedModel, layer: int) -> None:
    engine, transfers, _, first = with_prompt_on_host(model)
    transfers.fails_at = layer
    again = run(engine, request(model, "again", PROMPT, max_tokens=6, top_logprobs=2))["again"]
    expect_same(again, first)
    assert len(again.logprobs) == 6
    decisions = engine.scheduler.decisions
    assert (decisions["discard_load_failed"], decisions["preempt_load_failed"]) == (1, 1)
    assert again.usage is not None
    assert (again.usage.delivered, again.usage.computed_tokens) == ({}, 100), "what it is told to have got is what it got"
    engine.cache.check_integrity()


def test_bytes_that_turn_out_damaged_when_the_step_has_read_them(model: LoadedModel) -> None:
    engine, transfers, pool, first = with_prompt_on_host(model)
    pool.host[:, -1] += math.nan
    expect_same(run(engine, request(model, "again", PROMPT, max_tokens=6, temperature=0.0))["again"], first)
    assert len(transfers.waits) == LAYERS
    assert engine.scheduler.decisions["discard_load_failed"] == 1
    assert engine.cache.tiers.in_flight.decisions["load_failed"] == 6


@pytest.mark.parametrize(("seconds_left", "begins"), [(0.0, "begin_hides_load"), (math.inf, "")])
def test_a_load_that_the_batch_does_not_hide_keeps_no_other_sequence_waiting(
    model: LoadedModel, seconds_left: float, begins: str
) -> None:
    engine, transfers, _, first = with_prompt_on_host(model)
    transfers.seconds_left = seconds_left
    results: dict[str, Result] = {}
    engine.submit(request(model, "other", OTHER, workflow="x", max_tokens=30))
    collect(engine, results, steps=3)
    engine.submit(request(model, "again", PROMPT, max_tokens=6))
    collect(engine, results, steps=1)
    assert bool(transfers.waits) is ("again" in results) is bool(begins)
    assert len(results["other"].tokens) == 4, "it goes on either way"
    collect(engine, results)
    expect_same(results["again"], first)
    assert results["other"].tokens == reference(model, OTHER, 30)
    decisions = engine.scheduler.decisions
    assert {code for code in decisions if code.startswith("begin") and decisions[code]} == ({begins} if begins else set())


def test_other_sequences_of_the_batch_keep_what_they_have_computed(model: LoadedModel) -> None:
    engine, transfers, _, first = with_prompt_on_host(model)
    transfers.seconds_left, transfers.fails_at = 0.0, 1
    results: dict[str, Result] = {}
    engine.submit(request(model, "other", OTHER, workflow="x", max_tokens=30))
    collect(engine, results, steps=3)
    engine.submit(request(model, "again", PROMPT, max_tokens=6))
    collect(engine, results)
    assert engine.scheduler.decisions["discard_load_failed"] == 1
    assert results["other"].tokens == reference(model, OTHER, 30)
    assert results["other"].usage is not None
    assert results["other"].usage.preemptions == 0
    expect_same(results["again"], first)


@pytest.mark.parametrize("damage", [False, True])
def test_threads_that_copy_layer_by_layer(model: LoadedModel, damage: bool) -> None:
    pools = list[KvStorage]()
    engine = make_engine(model, pools=pools, gpu_blocks=20, host_blocks=40)
    first = run(engine, request(model, "first", PROMPT, max_tokens=6))["first"]
    for attempt in range(4):
        offload(engine)
        if damage:
            pools[0].host[attempt] += 1.0
        expect_same(run(engine, request(model, f"again {attempt}", PROMPT, max_tokens=6))[f"again {attempt}"], first)
    decisions = engine.scheduler.decisions
    assert decisions["begin_before_loaded"] + decisions["begin_hides_load"] > 0, "the first, whose speed is not known, is made"
    assert bool(engine.cache.tiers.in_flight.decisions["load_failed"]) is damage
