"""Properties of the choice of a worker (`routing/router.py`)."""

from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.load_speeds import LoadSpeed, LoadSpeeds
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.load import StepLoad, WorkerLoad
from pbkv_cluster.gateway.routing.router import (
    CachedTokens,
    Candidate,
    Choice,
    Costs,
    KnownContexts,
    assume_mean,
    candidates,
    choose,
    choose_blind,
    saved_s,
    score,
    wait_s,
)
from pbkv_cluster.gateway.routing.speeds import ASSUMED_COST, LoadingCost, StepSpeed
from pbkv_cluster.store.block_map import WorkerKey

COSTS = Costs(seconds_per_token=1e-3, parallelism=8)


def worker(
    worker_id: str,
    gpu: int = 0,
    host: int = 0,
    queued: int = 0,
    token_s: float | None = 0.001,
    served_last: bool = False,
    pending: int = 0,
) -> Candidate:
    cached = CachedTokens(gpu, host)
    return Candidate(worker_id, cached, pending, queued, token_s, served_last, loading_tokens=host / 8)


@st.composite
def fleets(draw: st.DrawFn) -> list[Candidate]:
    size = draw(st.integers(1, 6))
    last = draw(st.integers(-1, size - 1))
    blocks = st.integers(0, 64).map(lambda count: 16 * count)
    return [
        worker(
            f"w{n}",
            draw(blocks),
            draw(blocks),
            draw(st.integers(0, 100_000)),
            draw(st.none() | st.floats(0.0, 0.01)),
            n == last,
            draw(blocks),
        )
        for n in range(size)
    ]


COST = st.builds(Costs, st.floats(1e-7, 1e-1), st.integers(1, 256))


@given(fleets(), COST)
def test_the_choice_has_the_best_score_and_does_not_depend_on_the_order(fleet: list[Candidate], costs: Costs) -> None:
    choice = choose(fleet, costs)
    assert choose(fleet[::-1], costs) == choice
    chosen = next(each for each in fleet if each.worker_id == choice.worker_id)
    fleet, speed = assume_mean(fleet), chosen.token_s
    chosen = next(each for each in fleet if each.worker_id == choice.worker_id)
    assert speed in (chosen.token_s, None)
    assert score(chosen, costs) == max(score(each, costs) for each in fleet)
    equals = [each for each in fleet if score(each, costs) == score(chosen, costs)]
    assert chosen.queued_tokens == min(each.queued_tokens for each in equals), "ties go to the least loaded"


@given(fleets(), COST)
def test_more_cache_never_loses_and_more_load_never_wins(fleet: list[Candidate], costs: Costs) -> None:
    winner = choose(fleet, costs).worker_id
    better = [
        each._replace(cached=each.cached._replace(gpu=each.cached.gpu + 16)) if each.worker_id == winner else each
        for each in fleet
    ]
    assert choose(better, costs).worker_id == winner
    busier = [each if each.worker_id == winner else each._replace(queued_tokens=each.queued_tokens + 1) for each in fleet]
    assert choose(busier, costs).worker_id == winner
    fuller = [each if each.worker_id == winner else each._replace(pushed_out_tokens=1.0) for each in fleet]
    assert choose(fuller, costs).worker_id == winner


@given(fleets(), COST)
def test_the_score_is_what_is_saved_less_what_is_waited(fleet: list[Candidate], costs: Costs) -> None:
    for each in fleet:
        plain = each._replace(served_last=False)
        assert score(plain, costs) == saved_s(each, costs) - wait_s(each, costs)
        assert score(each._replace(served_last=True), costs) > score(plain, costs)
        on_gpu = each._replace(cached=CachedTokens(each.cached.all), loading_tokens=0.0)
        assert saved_s(on_gpu, costs) >= saved_s(each, costs), "a block on the GPU saves no less than one on the host"


@given(fleets())
def test_without_the_index_affinity_decides_then_load(fleet: list[Candidate]) -> None:
    choice = choose_blind(fleet)
    last = [each.worker_id for each in fleet if each.served_last]
    if last:
        assert choice.worker_id == last[0]
    else:
        chosen = next(each for each in fleet if each.worker_id == choice.worker_id)
        assert chosen.queued_tokens == min(each.queued_tokens for each in fleet)


def test_every_choice_says_why() -> None:
    cases = [
        ([worker("a")], Reason.ROUTE_ONLY_WORKER),
        ([worker("a"), worker("b")], Reason.ROUTE_LEAST_LOADED),
        ([worker("a"), worker("b", served_last=True)], Reason.ROUTE_AFFINITY),
        ([worker("a"), worker("b", gpu=64)], Reason.ROUTE_PREFIX),
        ([worker("a"), worker("b", pending=64)], Reason.ROUTE_PENDING_PREFIX),
        ([worker("a"), worker("b", gpu=64, queued=100_000)], Reason.ROUTE_QUEUE),
        ([worker("a", gpu=48), worker("b", gpu=32, served_last=True)], Reason.ROUTE_AFFINITY),
        ([worker("a"), worker("b", gpu=64)._replace(pushed_out_tokens=65)], Reason.ROUTE_PRESSURE),
    ]
    assert [choose(fleet, COSTS).reason for fleet, _ in cases] == [reason for _, reason in cases]
    assert choose_blind([worker("a"), worker("b")]).reason is Reason.ROUTE_BLIND_LEAST_LOADED
    assert choose_blind([worker("a"), worker("b", served_last=True)]).reason is Reason.ROUTE_BLIND_AFFINITY
    assert choose_blind([worker("a")]).reason is Reason.ROUTE_ONLY_WORKER


def test_a_long_queue_outweighs_a_prefix_and_a_long_prefix_a_queue() -> None:
    idle, holder = worker("idle"), worker("holder", gpu=1024, queued=8000)
    assert choose([idle, holder], COSTS).worker_id == "holder", "1.024 s saved against 1 s of waiting"
    assert choose([idle, holder._replace(queued_tokens=9000)], COSTS).worker_id == "idle"


def test_a_worker_that_has_finished_nothing_is_as_fast_as_the_others_on_average() -> None:
    known = [worker("a", queued=1000, token_s=0.001), worker("b", queued=1000, token_s=0.003)]
    new = worker("new", queued=1000, token_s=None)
    assert [each.token_s for each in assume_mean([*known, new])] == [0.001, 0.003, 0.002]
    assert choose([*known, new], COSTS).worker_id == "a"
    assert choose([*known, new._replace(queued_tokens=499)], COSTS).worker_id == "new"
    assert choose([*known, new._replace(queued_tokens=256_000)], COSTS).worker_id == "a", "it is not infinitely fast"
    nobody = [worker("a", queued=32_000, token_s=None), worker("b", token_s=None)]
    assert choose(nobody, COSTS).worker_id == "b", "nor are all of them"


def test_a_long_step_in_the_queue_counts_more_than_several_short_ones() -> None:
    """Two short steps of 100 tokens against one of 10,000."""
    assert choose([worker("short", queued=200), worker("long", queued=10_000)], COSTS).worker_id == "short"


def test_a_prefix_that_is_being_computed_counts_half() -> None:
    fleet = [worker("gpu", gpu=496), worker("pending", pending=1024)]
    assert choose(fleet, COSTS).worker_id == "pending"
    assert choose([worker("gpu", gpu=528), fleet[1]], COSTS).worker_id == "gpu"


@dataclass
class Named:
    """A worker without steps, and what it has measured."""

    name: str
    steps: WorkerLoad = field(default_factory=WorkerLoad)
    speed: StepSpeed = field(default_factory=StepSpeed)
    loading: LoadingCost = field(default_factory=lambda: LoadingCost(ManualClock()))
    memory_tokens: int = 0

    @property
    def key(self) -> WorkerKey:
        return self.name, ""


def seen(*fleet: tuple[Named, CachedTokens]) -> list[Candidate]:
    workers, cached = [each for each, _ in fleet], [there for _, there in fleet]
    return candidates(workers, cached, [[b"%d" % number for number in range(100)]] * len(fleet), KnownContexts(), None)


def measured(name: str, loads: dict[Tier, LoadSpeed], prefill_token_s: float = 1e-3) -> Named:
    found = Named(name)
    found.loading.measured(LoadSpeeds(prefill_token_s, loads))
    return found


def test_where_nothing_is_measured_a_prefix_is_worth_the_more_the_nearer_it_lies() -> None:
    places = CachedTokens(160), CachedTokens(0, 160), CachedTokens(0, sibling=160), CachedTokens(0, remote=160), CachedTokens(0)
    fleet = seen(*((Named(f"w{number}"), there) for number, there in enumerate(places)))
    values = [saved_s(each, COSTS) for each in fleet]
    assert values == sorted(set(values), reverse=True)
    reasons = [choose([each, *fleet[-1:]], COSTS).reason for each in fleet[:-1]]
    assert reasons == [Reason.ROUTE_PREFIX] * 2 + [Reason.ROUTE_SIBLING_PREFIX, Reason.ROUTE_REMOTE_PREFIX]
    assert [each.cached_tokens for each in fleet] == [160] * 4 + [0]


@given(
    st.builds(CachedTokens, *[st.integers(0, 64).map(lambda count: 16 * count)] * 5),
    st.dictionaries(st.sampled_from(Tier), st.builds(LoadSpeed, st.floats(0, 3e-3), st.floats(0, 0.5))),
)
def test_what_is_measured_decides_what_loads_are_worth(there: CachedTokens, loads: dict[Tier, LoadSpeed]) -> None:
    """Loads save the prefill less their own time and that of those before them. A worker loads from as many kinds of memory, in
    a row, as together save something, and what it would not load it computes, with all that follows.
    """

    def gain(*tiers: Tier) -> float:
        found = 0.0
        for tier in tiers:
            if tokens := getattr(there, tier.value):
                load = loads.get(tier, LoadSpeed(ASSUMED_COST[tier] * 1e-3, 0.0))
                found += tokens * (1e-3 - load.token_s) - load.queue_s
        assume(found == 0.0 or abs(found) > 1e-9)
        return found

    def loaded(*tiers: Tier) -> tuple[Tier, ...]:
        return max((tiers[:most] for most in range(len(tiers) + 1) if gain(*tiers[:most]) >= 0), key=len)

    (found,) = seen((measured("w", loads), there))
    own, others = loaded(Tier.HOST, Tier.DISK), loaded(Tier.SIBLING, Tier.REMOTE)
    if any(getattr(there, tier.value) for tier in {Tier.HOST, Tier.DISK}.difference(own)):
        others = ()
    assert saved_s(found, COSTS) == pytest.approx(there.gpu * 1e-3 + gain(*own) + gain(*others))
    kept = {Tier.GPU.value, *(tier.value for tier in (*own, *others))}
    assert found.cached == CachedTokens(**{name: tokens if name in kept else 0 for name, tokens in there._asdict().items()})


def test_nothing_counts_that_follows_a_gap() -> None:
    """The host has 160 tokens and a queue that takes longer than to compute them, so the worker asks nobody for the rest."""
    loads = {Tier.HOST: LoadSpeed(1e-4, 0.2), Tier.REMOTE: LoadSpeed(1e-4, 0.0)}
    short, long, none = seen(
        *((measured("w", loads), CachedTokens(64, host, remote=3840)) for host in (160, 320, 0)),
    )
    assert short.cached == CachedTokens(64)
    assert long.cached == CachedTokens(64, 320, remote=3840)
    assert none.cached == CachedTokens(64, remote=3840)


def test_a_step_leaves_its_prefix_only_if_to_copy_it_is_sooner_than_to_wait() -> None:
    holder = Named("holder")
    holder.speed.add(Usage(computed_tokens=1000, prefill_s=1.0))
    holder.steps.add("other", StepLoad([], 4000))  # half a second
    there = CachedTokens(960)
    away = CachedTokens(0, remote=960)

    def choice(remote: LoadSpeed) -> Choice:
        return choose(seen((holder, there), (measured("peer", {Tier.REMOTE: remote}), away)), COSTS)

    assert choice(LoadSpeed(1e-4, 0.0)) == ("peer", Reason.ROUTE_QUEUE)
    assert choice(LoadSpeed(4e-4, 0.0)).worker_id == "holder", "a slow network"
    assert choice(LoadSpeed(1e-4, 0.4)).worker_id == "holder", "a busy one"
