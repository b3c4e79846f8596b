"""Properties of the choice of a worker (`routing/router.py`)."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.router import Candidate, Costs, choose, choose_blind, saved_s, score, wait_s

COSTS = Costs(seconds_per_token=1e-3, parallelism=8)


def worker(
    worker_id: str, gpu: int = 0, host: int = 0, in_flight: int = 0, step_s: float = 1.0, served_last: bool = False
) -> Candidate:
    return Candidate(worker_id, gpu, host, in_flight, step_s, served_last)


@st.composite
def fleets(draw: st.DrawFn) -> list[Candidate]:
    size = draw(st.integers(1, 6))
    last = draw(st.integers(-1, size - 1))
    blocks = st.integers(0, 64).map(lambda count: 16 * count)
    return [
        worker(f"w{n}", draw(blocks), draw(blocks), draw(st.integers(0, 100)), draw(st.floats(0.0, 10.0)), n == last)
        for n in range(size)
    ]


COST = st.builds(Costs, st.floats(1e-7, 1e-1), st.integers(1, 256))


@given(fleets(), COST)
def test_the_choice_has_the_best_score_and_does_not_depend_on_the_order(fleet: list[Candidate], costs: Costs) -> None:
    choice = choose(fleet, costs)
    assert choose(fleet[::-1], costs) == choice
    chosen = next(each for each in fleet if each.worker_id == choice.worker_id)
    assert score(chosen, costs) == max(score(each, costs) for each in fleet)
    equals = [each for each in fleet if score(each, costs) == score(chosen, costs)]
    assert chosen.in_flight == min(each.in_flight for each in equals), "ties go to the least loaded"


@given(fleets(), COST)
def test_more_cache_never_loses_and_more_load_never_wins(fleet: list[Candidate], costs: Costs) -> None:
    winner = choose(fleet, costs).worker_id
    better = [each._replace(gpu_tokens=each.gpu_tokens + 16) if each.worker_id == winner else each for each in fleet]
    assert choose(better, costs).worker_id == winner
    busier = [each if each.worker_id == winner else each._replace(in_flight=each.in_flight + 1) for each in fleet]
    assert choose(busier, costs).worker_id == winner


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
        assert chosen.in_flight == min(each.in_flight for each in fleet)


def test_every_choice_says_why() -> None:
    cases = [
        ([worker("a")], Reason.ROUTE_ONLY_WORKER),
        ([worker("a"), worker("b")], Reason.ROUTE_LEAST_LOADED),
        ([worker("a"), worker("b", served_last=True)], Reason.ROUTE_AFFINITY),
        ([worker("a"), worker("b", gpu=64)], Reason.ROUTE_PREFIX),
        ([worker("a"), worker("b", gpu=64, in_flight=100)], Reason.ROUTE_QUEUE),
    ]
    assert [choose(fleet, COSTS).reason for fleet, _ in cases] == [reason for _, reason in cases]
    assert choose_blind([worker("a"), worker("b")]).reason is Reason.ROUTE_BLIND_LEAST_LOADED
    assert choose_blind([worker("a"), worker("b", served_last=True)]).reason is Reason.ROUTE_BLIND_AFFINITY
    assert choose_blind([worker("a")]).reason is Reason.ROUTE_ONLY_WORKER


def test_a_long_queue_outweighs_a_prefix_and_a_long_prefix_a_queue() -> None:
    idle, holder = worker("idle"), worker("holder", gpu=1024, in_flight=8)
    assert choose([idle, holder], COSTS).worker_id == "holder", "1.024 s saved against 1 s of waiting"
    assert choose([idle, holder._replace(in_flight=9)], COSTS).worker_id == "idle"
