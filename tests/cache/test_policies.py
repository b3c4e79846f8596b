"""What each policy evicts first, and the score of PBKV against its formula."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.policies.base import ReusePolicy, make_policy
from pbkv_cluster.cache.tree.node import NO_SLOTS, Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import pack, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.segment import Segment
from tests.cache.policy_harness import AGENTS, SPACE, Cache, prompt

chance = st.floats(0.0, 1.0)
rows = st.lists(st.tuples(st.dictionaries(st.sampled_from(AGENTS), chance), chance), min_size=1, max_size=4)


def test_lru_is_blind_to_workflows() -> None:
    cache = Cache("lru")
    for number in (1, 2, 3):
        cache.step(number, f"w{number}")
    cache.step(1, "w1")
    cache.cache.retire("w1")
    assert cache.order() == [2, 3, 1]


@pytest.mark.parametrize("policy", ["retired-lru", "pbkv-paper"])
def test_ended_workflows_go_first_then_the_least_recent(policy: str) -> None:
    cache = Cache(policy)
    for number in (1, 2, 3, 4):
        cache.step(number, f"w{number}")
    cache.cache.retire("w4")
    cache.cache.retire("w2")
    assert cache.order() == [2, 4, 1, 3]


def test_pbkv_evicts_what_is_least_likely_to_be_called() -> None:
    cache = Cache("pbkv-paper")
    cache.step(1, "a", "planner")
    cache.step(2, "b", "coder")
    cache.step(3, "c", "tester")
    for workflow in "abc":
        cache.forecast(workflow, planner=0.6, coder=0.1, tester=0.3)
    assert cache.order() == [2, 3, 1]
    cache = Cache("pbkv-paper")
    cache.step(1, "a", "planner")
    cache.step(2, "a", "coder")
    cache.forecast("a", planner=0.1, coder=0.9)
    cache.forecast("a", planner=0.9, coder=0.1)
    assert cache.order() == [2, 1], "a newer forecast takes the place of the older"


def test_what_many_workflows_share_outlives_what_one_holds() -> None:
    cache = Cache("pbkv-paper")
    cache.step(1, "a")
    cache.step(2, "b")
    cache.step(1, "b")
    cache.step(3, "c")
    for workflow in "abc":
        cache.forecast(workflow, planner=0.4)
    assert cache.order()[-1] == 1


def test_without_forecasts_pbkv_keeps_the_workflows_that_were_active_last() -> None:
    cache = Cache("pbkv-paper")
    for number, workflow in ((1, "a"), (2, "b"), (3, "a")):
        cache.step(number, workflow)
    cache.clock.advance(100.0)
    cache.step(4, "b")
    # The step of b made all that b holds worth more, its first prompt too, though that was used before a's last.
    assert cache.order() == [1, 3, 2, 4]


@given(rows=rows, touched=st.sets(st.sampled_from(AGENTS), min_size=1), gamma=st.floats(0.1, 1.0))
def test_the_score_is_that_of_the_formula(rows: list[tuple[dict[str, float], float]], touched: set[str], gamma: float) -> None:
    config = CacheConfig(policy="pbkv-paper", gamma=gamma)
    policy = make_policy("pbkv-paper", config)
    owner, node, access = Owner("w"), Node(pack([1] * 16), None, tiers=1), Segment(None, 0, 1, 0, "x", False)
    access.agents = dict.fromkeys(touched, 0)
    node.owners[owner] = access
    owner.forecast = Forecast("w", 1, 0.0, tuple(StepForecast(agents, survival) for agents, survival in rows))
    owner.forecast_at = owner.active_at = 0.0
    score = sum(
        gamma**k * survival * sum(agents.get(agent, 0.0) for agent in touched) for k, (agents, survival) in enumerate(rows)
    )
    value = policy.value(node, 0.0)
    assert value == (pytest.approx(math.log2(score), abs=1e-9) if score > 0 else -math.inf)
    owner.forecast_at = owner.active_at = config.forecast_half_life_s
    if score > 0:
        assert policy.value(node, 0.0) == pytest.approx(math.log2(2 * score), abs=1e-9), "half a life newer counts double"


def test_an_unknown_policy_names_the_field_and_the_choices() -> None:
    with pytest.raises(InvalidArgument, match=r"cache\.host_policy.*continuum, kvflow, lfu, lru,.*pbkv-paper"):
        make_policy("clairvoyance", CacheConfig(), "cache.host_policy")


class LowestFirst(ReusePolicy):
    """Prompts of the lowest numbers go first."""

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return float(unpack(node.tokens)[0])


LOWEST_FIRST = f"{__name__}:{LowestFirst.__name__}"


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), ended=st.sets(st.integers(0, 11)))
def test_one_order_decides_on_all_tiers(order: list[int], ended: set[int]) -> None:
    """What is worth most lies on the GPU and what is worth least nowhere, whoever came first and whose workflow has ended."""
    cache = Cache(LOWEST_FIRST, gpu_blocks=13, host_blocks=12)
    for number in order:
        cache.step(number, f"w{number}")
        if number in ended:
            cache.cache.retire(f"w{number}")
    cache.cache.tiers.give(cache.cache.tiers.take(4) or NO_SLOTS)  # as if one more step came
    assert cache.held(Tier.GPU) | cache.held(Tier.HOST) >= set(range(5, 12)), "the last may stay though it is worth least"
    assert cache.held(Tier.GPU) == {9, 10, 11}
    cache.cache.check_integrity()


def test_the_host_can_have_an_order_of_its_own() -> None:
    same, other = (Cache(LOWEST_FIRST, 5, 6, host_policy=policy) for policy in ("", "lru"))
    for cache in (same, other):
        for number in (7, 8, 9, 1, 2, 3):
            cache.step(number, f"w{number}")
        policies = cache.cache.policies
        assert (policies[0] is policies[1]) == (cache is same), "what a policy knows is kept once"
    assert same.held(Tier.HOST) == {7, 8, 9}
    assert other.held(Tier.HOST) == {1, 2}


def test_a_copy_in_the_host_makes_room_before_anything_else() -> None:
    cache = Cache(LOWEST_FIRST, gpu_blocks=5, host_blocks=7)
    for number in (9, 1, 2, 9):
        cache.step(number, f"w{number}")
    decisions = cache.cache.tiers.decisions
    assert (decisions["load"], cache.cache.used_blocks(Tier.HOST)) == (2, 7), "the host is full, and has two copies of 9"
    assert decisions["drop"] + decisions["host_drop_active"] == 0
    cache.step(3, "w3")
    assert decisions["host_drop_copy"] == 1, "though 9 is worth most"
    assert (decisions["drop"], decisions["host_drop_active"]) == (0, 1), "for the block of 9 that had only that copy"
    assert all(sum(cache.cache.captured(SPACE, prompt(number)).values()) == 48 for number in (3, 9))
    cache.cache.check_integrity()


class Fading(ReusePolicy):
    """Prompt 0 is worth more than all others for a minute, and less after that."""

    drifts = True

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return 60.0 - now if unpack(node.tokens)[0] == 0 else 0.0


def test_a_node_that_nobody_uses_is_not_kept_by_what_it_was_worth_once() -> None:
    cache = Cache(f"{__name__}:{Fading.__name__}", gpu_blocks=23)
    cache.step(0, "w0")
    kept = list[bool]()
    while cache.clock.now() < 90.0:
        cache.step(1 + len(kept) % 9, "w")
        kept.append(cache.holds(0))
    assert all(kept[:50]), "others were evicted while it was worth more"
    assert not kept[-1]


class NewestFirst(ReusePolicy):
    """A user's own."""

    def __init__(self, config: CacheConfig) -> None:
        self.gamma = config.gamma

    def value(self, node: Node, now: float) -> float:
        return -node.last_access


def test_a_policy_of_ones_own_is_named_by_its_path() -> None:
    path = f"{__name__}:{NewestFirst.__name__}"
    policy = make_policy(path, CacheConfig(gamma=0.25))
    assert isinstance(policy, NewestFirst)
    assert policy.gamma == 0.25
    cache = Cache(path)
    for number in (1, 2, 3):
        cache.step(number, f"w{number}")
    assert cache.order() == [3, 2, 1]
    with pytest.raises(InvalidArgument, match=r"cache\.policy.*cannot be imported"):
        Cache(f"{__name__}:Nobody")
