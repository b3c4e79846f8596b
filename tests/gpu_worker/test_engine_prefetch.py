"""The real engine prefetches between its batches, and its tokens are the same as without."""

from concurrent.futures import Future
from functools import partial
from threading import Event
from typing import Literal

import pytest

from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.kv.lanes.copy_lane import CopyLane
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from tests.gpu_worker.engine_harness import Result, collect, ids, make_engine, request, run


@pytest.fixture
def model(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["llama"]


def play(model: LoadedModel, engine: Engine) -> dict[str, Result]:
    """Workflow `a` loses its blocks to others; its next step waits while another decodes."""
    first = ids(160, seed=1)
    results = run(engine, request(model, "a0", first, "a", max_tokens=4))
    for number in (2, 3):
        results |= run(engine, request(model, f"fill{number}", ids(320, seed=number), f"w{number}", max_tokens=4))
    engine.submit(request(model, "b", ids(20, seed=4), "b", max_tokens=40))
    engine.submit(request(model, "a1", first + results["a0"].tokens + ids(20, seed=5), "a", step=1, max_tokens=8))
    collect(engine, results)
    return results


class BusyClock(ManualClock):
    """Moves on by 10 ms whenever it is read, so that the machine's speed does not decide when a prefetch is due."""

    def now(self) -> float:
        self.advance(0.01)
        return super().now()


def make(model: LoadedModel, prefetch: Literal["none", "queue"], late: int | None = None) -> Engine:
    """Steps run in the order in which they came, so that one that waits has something to be loaded for."""
    return make_engine(
        model, late=late, prefetch=prefetch, clock=BusyClock(), gpu_blocks=40, host_blocks=64, max_running=1, order="arrival"
    )


@pytest.mark.parametrize("late", [None, 0, 1])
def test_tokens_are_the_same_with_prefetch_and_without(model: LoadedModel, late: int | None) -> None:
    plain = play(model, make(model, "none"))
    engine = make(model, "queue", late)
    results = play(model, engine)
    assert {name: result.tokens for name, result in results.items()} == {name: result.tokens for name, result in plain.items()}
    total = engine.cache.tiers.prefetched.total
    assert total.used > 0, "the queued step used nothing that was prefetched"
    usage = results["a1"].usage
    assert usage is not None
    assert usage.prefetched_tokens <= usage.delivered.get(Tier.GPU, 0)
    engine.cache.clear()
    engine.cache.check_integrity()
    assert engine.cache.tiers.prefetched.total.pending == 0


@pytest.mark.parametrize("late", [None, 0])
def test_a_step_that_is_cancelled_leaves_no_prefetched_block_behind(model: LoadedModel, late: int | None) -> None:
    engine = make(model, "queue", late)
    first, results = ids(160, seed=1), dict[str, Result]()
    run(engine, request(model, "a0", first, "a", max_tokens=4))
    for number in (2, 3):
        run(engine, request(model, f"fill{number}", ids(320, seed=number), f"w{number}", max_tokens=4))
    engine.submit(request(model, "b", ids(20, seed=4), "b", max_tokens=40))
    engine.submit(request(model, "a1", first, "a", step=1))
    while not engine.cache.tiers.prefetched.total.loaded and len(results.get("b", Result()).tokens) < 40:
        collect(engine, results, steps=1)
    assert engine.cache.tiers.prefetched.total.loaded > 0
    engine.cancel("a1")
    engine.cache.retire("a")
    collect(engine, results)
    engine.cache.clear()
    engine.cache.check_integrity()
    assert engine.cache.tiers.prefetched.total.pending == 0
    assert engine.cache.used_blocks(Tier.GPU) == 0


def test_an_engine_without_prefetch_loads_nothing_ahead(model: LoadedModel) -> None:
    engine = make(model, "none")
    play(model, engine)
    assert engine.cache.tiers.prefetched.total == PrefetchCount()
    assert engine.idle_s is None


def test_urgent_copies_overtake_prefetches_and_a_prefetch_that_is_waited_for_is_urgent() -> None:
    lane, started, go, order = CopyLane("test"), Event(), Event(), list[str]()

    def first() -> None:
        started.set()
        go.wait(30)

    def submit(name: str, transfer: Transfer) -> Future[None]:
        return lane.submit(transfer, partial(order.append, name))

    lane.submit(_load(urgent=True), first)
    assert started.wait(30)
    early, waited = _load(urgent=False), _load(urgent=False)
    ends = [submit("prefetch", early), submit("waited for", waited), submit("step", _load(urgent=True))]
    Transfer(Tier.GPU, new_slots((1,)), Tier.HOST, new_slots((1,)), after=[waited])
    go.set()
    for end in ends:
        end.result(30)
    lane.close()
    assert order == ["waited for", "step", "prefetch"]


def _load(urgent: bool) -> Transfer:
    return Transfer(Tier.HOST, new_slots((0,)), Tier.GPU, new_slots((0,)), urgent=urgent)
