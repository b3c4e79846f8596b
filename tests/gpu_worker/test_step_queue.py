"""The queue is fair between tenants and starves nobody, whatever comes, on a clock that the test moves."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.config.engine import parse_weights
from pbkv_cluster.gpu_worker.engine.queue.order import MAX_PRIORITY, Order
from pbkv_cluster.gpu_worker.engine.queue.step_queue import Rank, StepQueue


@dataclass(eq=False)
class Waiting:
    tenant: str
    rank: Rank
    arrived_at: float
    tokens: int = 1


COSTS = st.lists(st.integers(1, 1000), min_size=20, max_size=60)
WEIGHT = st.sampled_from([0.5, 1.0, 3.0])


@given(COSTS, COSTS, WEIGHT, WEIGHT)
def test_two_tenants_that_both_wait_get_shares_by_weight(
    costs: Sequence[int], others: Sequence[int], weight: float, other: float
) -> None:
    queue = StepQueue[Waiting]({"a": weight, "b": other})
    for tenant, each in (("a", costs), ("b", others)):
        for number, tokens in enumerate(each):
            queue.add(Waiting(tenant, Rank(number, number), 0.0, tokens), tenant, Rank(number, number))
    served = {"a": 0.0, "b": 0.0}
    most = max(costs) / weight + max(others) / other
    while queue.waiting_of("a") and queue.waiting_of("b"):
        step = queue.take()
        queue.shares.charge(step.tenant, step.tokens)
        served[step.tenant] += step.tokens / (weight if step.tenant == "a" else other)
        assert abs(served["a"] - served["b"]) <= most


@given(st.integers(1, 30), st.integers(1, 5))
def test_who_was_away_starts_where_the_others_are(before: int, tenants: int) -> None:
    """A tenant that asked for nothing has not saved up service."""
    queue = StepQueue[Waiting]({})
    names = [f"t{number}" for number in range(tenants)]
    for number in range(before + 40):
        for name in names:
            queue.add(Waiting(name, Rank(0.0, number), 0.0), name, Rank(0.0, number))
    for _ in range(before * tenants):
        queue.shares.charge(queue.take().tenant, 10)
    for number in range(40):
        queue.add(Waiting("late", Rank(0.0, number), 0.0), "late", Rank(0.0, number))
    turns = []
    for _ in range(10 * (tenants + 1)):
        turns.append(queue.take().tenant)
        queue.shares.charge(turns[-1], 10)
    assert 9 <= turns.count("late") <= 11


CONFIGS = st.builds(
    EngineConfig,
    order=st.sampled_from(["cached", "arrival"]),
    ageing_s=st.sampled_from([0.0, 1.0, 10.0]),
    cached_ahead_s=st.sampled_from([0.0, 30.0]),
)
ARRIVALS = st.lists(
    st.tuples(st.sampled_from("ab"), st.floats(0.0, 50.0), st.integers(-1000, 1000), st.floats(0.0, 1.0), st.integers(0, 2)),
    min_size=1,
    max_size=60,
)


@given(CONFIGS, ARRIVALS)
def test_no_step_is_overtaken_by_one_that_comes_much_later(
    config: EngineConfig, arrivals: Sequence[tuple[str, float, int, float, int]]
) -> None:
    queue, order, clock = StepQueue[Waiting]({}), Order(config), ManualClock()
    waiting: list[Waiting] = []
    for number, (tenant, pause, priority, cached, taken) in enumerate(arrivals):
        clock.advance(pause)
        step = Waiting(tenant, order.rank(clock.now(), number, priority, cached), clock.now())
        queue.add(step, tenant, step.rank)
        waiting.append(step)
        for _ in range(min(taken, len(waiting))):
            head, chosen = queue.head(), queue.take()
            assert chosen is head
            waiting.remove(chosen)
            queue.shares.charge(chosen.tenant, 1)
            own = [each for each in waiting if each.tenant == chosen.tenant]
            assert all(chosen.arrived_at - each.arrived_at <= order.longest_lead_s for each in own)
            assert chosen.rank == min(each.rank for each in (chosen, *own))
        assert sorted(map(id, queue)) == sorted(map(id, waiting))
        assert len(queue) == len(waiting)
        assert [*map(id, queue.first(1))] == [id(queue.head()) for _ in waiting[:1]]
    left = len(waiting)
    assert len({id(queue.take()) for _ in range(left)}) == left, "all are served in the end"


def test_a_higher_priority_is_worth_so_much_waiting() -> None:
    order = Order(EngineConfig(order="arrival", ageing_s=10.0))
    assert order.rank(100.0, 0, 0, 1.0) < order.rank(110.5, 1, 1, 0.0)
    assert order.rank(100.0, 0, 0, 1.0) > order.rank(109.5, 1, 1, 0.0)
    assert order.rank(0.0, 1, MAX_PRIORITY + 7, 0.0) == order.rank(0.0, 1, MAX_PRIORITY, 0.0)


def test_steps_whose_prompts_are_cached_go_first_where_that_is_the_order() -> None:
    assert Order(EngineConfig()).rank(20.0, 1, 0, 0.9) < Order(EngineConfig()).rank(0.0, 0, 0, 0.1)
    plain = Order(EngineConfig(order="arrival"))
    assert plain.rank(20.0, 1, 0, 0.9) > plain.rank(0.0, 0, 0, 0.1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 30)), max_size=40))
def test_steps_leave_in_whatever_order_they_are_withdrawn(operations: Sequence[tuple[str, bool, int]]) -> None:
    queue, waiting = StepQueue[Waiting]({}), list[Waiting]()
    for number, (tenant, adds, at) in enumerate(operations):
        if adds:
            step = Waiting(tenant, Rank(0.0, number), 0.0)
            queue.add(step, tenant, step.rank)
            waiting.append(step)
        elif waiting:
            step = waiting.pop(at % len(waiting))
            assert queue.remove(step, step.tenant)
            assert not queue.remove(step, step.tenant)
        assert len(queue) == len(waiting)
        assert sorted(map(id, queue)) == sorted(map(id, waiting))


def test_tenants_that_come_once_are_forgotten() -> None:
    queue = StepQueue[Waiting]({})
    for number in range(10_000):
        queue.add(Waiting(f"t{number}", Rank(0.0, number), 0.0), f"t{number}", Rank(0.0, number))
        queue.shares.charge(queue.take().tenant, 1000)
    assert len(queue.shares) < 2000


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=0", "a=-1", "a=nan", "a=inf", "a=1,a=2", "a=x"])
def test_weights_must_be_weights(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be TENANT=WEIGHT|twice"):
        parse_weights(text)
    assert parse_weights(" a=2, b=c=0.5,") == {"a": 2.0, "b=c": 0.5}
