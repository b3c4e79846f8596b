"""What a step costs, and when the guard is sure that one of two policies costs more."""

import itertools
import math
import random
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.cache.guard.balance import Balance
from pbkv_cluster.cache.guard.cost import CostMeter
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier


def test_a_step_costs_what_has_to_be_computed_and_what_is_loaded() -> None:
    def load_s(source: Tier, target: Tier, blocks: int) -> float:
        assert target is Tier.GPU
        return {Tier.HOST: 0.25 * blocks}[source]

    found = {Tier.GPU: 4 * BLOCK_TOKENS, Tier.HOST: 2 * BLOCK_TOKENS}
    meter = CostMeter(load_s, lambda tokens: 0.125 * tokens)
    assert meter.cost(100, found) == (4 + 4, 1.0), "4 tokens to compute, and a load that takes as long as 4 more"
    assert meter.cost(96, {Tier.GPU: 96}) == (0, 0.0)
    unknown = CostMeter(load_s, lambda tokens: inf * tokens)
    assert unknown.cost(100, found) == (4, inf)
    assert unknown.cost(96, {Tier.HOST: 96}) == (0, 1.5), "all of it is found, whatever a prefill takes"


@given(
    confidence=st.floats(1.5, 5.0),
    loss=st.floats(1e-3, 0.09) | st.floats(10.0, 1e6),
    equal=st.integers(0, 10),
)
def test_a_few_steps_that_all_cost_more_are_enough_and_fewer_if_much_is_lost(
    confidence: float, loss: float, equal: int
) -> None:
    balance = Balance(confidence, 10_000)
    assert not any(balance.add(1.0, 1.0) for _ in range(equal))
    steps = 1
    while not balance.add(1.0 + loss, 1.0):
        steps += 1
    needed = confidence if loss < 1.0 else 0.8 * confidence
    assert needed**2 - 1 <= steps <= needed**2 + 2
    assert balance.lru_active


@given(loss=st.floats(1e-3, 1e12), others=st.lists(st.floats(-1.0, 1.0), max_size=50))
def test_one_large_loss_does_not_tell(loss: float, others: list[float]) -> None:
    """However large it is: it could as well have been the other way round."""
    balance = Balance(3.0, 1000)
    assert not balance.add(loss, 0.0)
    assert balance.excess == 1.0
    assert not any(balance.add(1e-3 * loss * each, 0.0) for each in others)


def test_many_small_losses_show_behind_a_few_large_differences() -> None:
    balance, large = Balance(2.5, 1000), itertools.cycle((30.0, -30.0))
    differences = [next(large) if number % 10 == 5 else 1.0 for number in range(60)]
    assert any(balance.add(2.0 + each, 2.0) for each in differences)
    assert sum(differences) < 2.5 * math.sqrt(sum(each * each for each in differences)), "their sum alone does not tell"
    immaterial = Balance(2.5, 1000)
    assert not any(immaterial.add(1e4 + each, 1e4) for each in differences)


@given(loss=st.floats(0.1, 10.0), gain=st.floats(12.0, 1000.0))
def test_a_policy_that_often_loses_little_and_now_and_then_gains_much_is_kept(loss: float, gain: float) -> None:
    balance = Balance(2.5, 1000)
    for _ in range(50):
        assert not balance.add(0.0, gain * loss)
        assert not any(balance.add(loss, 0.0) for _ in range(10))


def test_policies_that_cost_the_same_are_hardly_ever_switched() -> None:
    source, balance, changes = random.Random(1), Balance(3.0, 1000), 0
    for _ in range(20_000):
        if balance.add(source.choice((-1, 1)) * source.paretovariate(1.2), 0.0):
            balance.restart(balance.lru_active)
            changes += 1
    assert changes <= 4


def test_the_way_back_is_as_sure_as_the_way_there() -> None:
    balance = Balance(3.0, 1000)
    balance.restart(lru_active=True)
    assert not any(balance.add(difference, 0.0) for difference in (5.0, -5.0) * 500)
    balance.restart(lru_active=True)
    assert [balance.add(0.0, 5.0) for _ in range(20)].index(True) in range(8, 11)
    assert not balance.lru_active
