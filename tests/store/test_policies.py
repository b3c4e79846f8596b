"""What each policy evicts first, and the score of PBKV against its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.store.cache import KVCache
from pbkv_cluster.store.mover import NullMover
from pbkv_cluster.store.node import Access, Node, Owner
from pbkv_cluster.store.policies.base import make_policy

SPACE = Namespace("m", "r", "f", "l")
AGENTS = ("planner", "coder", "tester")
chance = st.floats(0.0, 1.0)
rows = st.lists(st.tuples(st.dictionaries(st.sampled_from(AGENTS), chance), chance), min_size=1, max_size=4)


def prompt(number: int) -> bytes:
    """Three blocks and a token, unlike those of any other number."""
    return pack([number] * 49)


class Cache:
    """A cache that steps are played on, and that can be asked what it still holds."""

    def __init__(self, policy: str, gpu_blocks: int = 100) -> None:
        self.clock = ManualClock()
        self.cache = KVCache(gpu_blocks, 0, CacheConfig(policy=policy), NullMover(), self.clock)
        self.epoch = 0

    def step(self, number: int, workflow: str, agent: str = "planner") -> None:
        self.clock.advance(1.0)
        lease = self.cache.open(SPACE, prompt(number), workflow, agent, 0, 49)
        assert lease is not None
        assert self.cache.grow(lease, 49)
        self.cache.commit(lease, prompt(number))
        self.cache.close(lease)

    def forecast(self, workflow: str, **agents: float) -> None:
        self.epoch += 1
        assert self.cache.apply(Forecast(workflow, self.epoch, 0.0, (StepForecast(agents, 1.0),)))

    def order(self) -> list[int]:
        """The numbers whose prompts leave, in order, as everything is evicted."""
        left, known = [], [n for n in range(20) if self.holds(n)]
        while known:
            slots = self.cache.tiers.take(self.cache.tiers.pools[0].free_slots + 3)
            assert slots is not None
            self.cache.tiers.give(slots)
            gone = [n for n in known if not self.holds(n)]
            left += gone
            known = [n for n in known if n not in gone]
        return left

    def holds(self, number: int) -> bool:
        return bool(self.cache.captured(SPACE, prompt(number)))


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
    owner, node, access = Owner("w"), Node(pack([1] * 16), None), Access(0)
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
    with pytest.raises(InvalidArgument, match=r"cache\.host_policy.*lru.*pbkv-paper"):
        make_policy("clairvoyance", CacheConfig(), "cache.host_policy")


def test_a_policy_of_ones_own_is_named_by_its_path() -> None:
    policy = make_policy("pbkv_cluster.store.policies.lru:Lru", CacheConfig())
    assert not policy.retired_first
