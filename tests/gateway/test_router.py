"""Properties of the choice of a worker (`routing/router.py`)."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.router import Candidate, Costs, assume_mean, choose, choose_blind, saved_s, score, wait_s

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
    return Candidate(worker_id, gpu, host, pending, queued, token_s, served_last)


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
    better = [each._replace(gpu_tokens=each.gpu_tokens + 16) if each.worker_id == winner else each for each in fleet]
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
        on_gpu = each._replace(gpu_tokens=each.gpu_tokens + each.host_tokens, host_tokens=0)
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
    assert choose([fleet[0]._replace(gpu_tokens=528), fleet[1]], COSTS).worker_id == "gpu"


def test_a_prefix_that_can_be_copied_is_worth_less_than_ones_own_and_more_than_none() -> None:
    sibling = worker("sibling")._replace(sibling_tokens=160)
    assert saved_s(worker("w"), COSTS) < saved_s(sibling, COSTS) < saved_s(worker("w", host=160), COSTS)
    assert choose([worker("a"), sibling], COSTS) == ("sibling", Reason.ROUTE_SIBLING_PREFIX)
    assert choose([worker("a", host=160), sibling], COSTS).reason is Reason.ROUTE_PREFIX
    assert sibling.cached_tokens == 160
