"""The guard: its shadows against real caches, and what it makes of good and of bad policies."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.sequence.recorded_step import UNRECORDED
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import BLOCK_TOKENS, TOKEN_BYTES, count, pack
from pbkv_cluster.core.usage import Tier

SPACE = Namespace("m", "r", "f", "l")
AGENTS = ("planner", "coder")
HOT = 1000  # prompts that begin with a token below it come again
REFORM_S = 1000.0


class Hostile(ReusePolicy):
    """The most recently used goes first."""

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return -node.last_access


class Informed(ReusePolicy):
    """What never comes again goes first."""

    steady = True

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return float(int.from_bytes(node.tokens[:TOKEN_BYTES], "little") < HOT)


class Perverse(Informed):
    """What comes again goes first."""

    def value(self, node: Node, now: float) -> float:
        return -super().value(node, now)


class Reformed(Informed):
    """Hostile at first."""

    steady = False

    def value(self, node: Node, now: float) -> float:
        return -node.last_access if now < REFORM_S else node.last_access + 1e9 * super().value(node, now)


def named(policy: type[ReusePolicy]) -> str:
    return f"{__name__}:{policy.__name__}"


class Steps:
    """Steps that run one after the other, and what they found."""

    def __init__(self, cache: KVCache, clock: ManualClock) -> None:
        self.cache = cache
        self.clock = clock
        self.prompt_tokens = 0
        self.hits = 0  # on the GPU
        self.hits_any = 0
        self.epoch = 0

    def run(self, prompt: bytes, output: bytes, workflow: str, agent: str, chunk: int = 1 << 20, again: bool = False) -> bool:
        """A prefill in chunks, then a decode token by token. False if there is no room."""
        self.clock.advance(1.0)
        handle = self.cache.open(StepIdentity(SPACE, workflow, agent, 0, count(prompt)), prompt, again=again)
        if handle is None:
            return False
        if not again:
            self.prompt_tokens += count(prompt)
            self.hits += handle.delivered.get(Tier.GPU, 0)
            self.hits_any += sum(handle.delivered.values())
        tokens, at = prompt + output, handle.committed * BLOCK_TOKENS
        while at < count(tokens):
            at = min(at + chunk, count(prompt)) if at < count(prompt) else at + 1
            if not self.cache.grow(handle, at):
                break
            self.clock.advance(0.001)
            self.cache.commit(handle, tokens[: at * TOKEN_BYTES])
        self.cache.close(handle)
        return True

    def forecast(self, workflow: str, share: float) -> None:
        self.epoch += 1
        steps = (StepForecast({AGENTS[0]: share, AGENTS[1]: 1 - share}, 0.9),)
        self.cache.apply(Forecast(workflow, self.epoch, 0.0, steps))


def cache_of(policy: str, blocks: int, host_blocks: int = 0, **fields: object) -> tuple[KVCache, ManualClock]:
    clock = ManualClock()
    config = CacheConfig.model_validate({"policy": policy, **fields})
    return make_cache({Tier.GPU: blocks, Tier.HOST: host_blocks}, config, NullTransferEngine(), clock), clock


def player(policy: str, blocks: int, **fields: Any) -> Steps:
    return Steps(*cache_of(policy, blocks, **fields))


def seen(steps: Steps) -> GuardStat:
    stat = steps.cache.guard()
    assert stat is not None
    return stat


def guard_of(steps: Steps) -> Guard:
    assert isinstance(steps.cache.observer, Guard)
    return steps.cache.observer


def history(steps: Steps, seed: int, length: int) -> None:
    """Steps of workflows that share stems, with forecasts and ends between them."""
    source = random.Random(seed)
    for _ in range(length):
        workflow, agent = f"w{source.randrange(5)}", source.choice(AGENTS)
        kind = source.random()
        if kind < 0.1:
            steps.cache.retire(workflow)
        elif kind < 0.3:
            steps.forecast(workflow, source.random())
        else:
            stem = [source.randrange(3)] * source.choice((8, 16, 40, 64))
            tail = [source.randrange(2) for _ in range(source.randrange(1, 90))]
            output = [source.randrange(2) for _ in range(source.randrange(1, 40))]
            steps.run(pack(stem + tail), pack(output), workflow, agent, source.choice((16, 33, 1000)))


def hot_and_cold(seed: int, length: int) -> Iterator[bytes]:
    """Prompts of eight blocks and a token: more than half come again and again, the others never."""
    source = random.Random(seed)
    for number in range(length):
        name = source.randrange(30) if source.random() < 0.6 else HOT + number
        yield pack([name] * (8 * BLOCK_TOKENS + 1))


def play(policy: str, length: int = 3000, blocks: int = 160, **fields: Any) -> Steps:
    steps = player(policy, blocks, **fields)
    for number, prompt in enumerate(hot_and_cold(0, length)):
        steps.run(prompt, pack([0]), f"w{number % 8}", AGENTS[0])
    return steps


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from((16, 24, 40)))
def test_shadows_hit_what_caches_of_their_own_would(seed: int, blocks: int) -> None:
    """Of steps that run one after the other, exactly: the shadow of LRU as LRU alone, that of the policy as it alone. And the
    cache itself hits what the one does by which it evicts."""
    following, fallen = (player("pbkv-paper", blocks, guard_confidence=100) for _ in range(2))  # it never decides
    guard_of(fallen).fall_back()
    lru, alone = player("lru", blocks), player("pbkv-paper", blocks, guard=False)
    for steps in (following, fallen, lru, alone):
        history(steps, seed, 60)
    for guarded, hits in ((following, alone.hits), (fallen, lru.hits)):
        guarded.cache.check_integrity()
        stat = seen(guarded)
        assert (stat.lru_hits.tokens, stat.policy_hits.tokens) == (lru.hits, alone.hits)
        assert (stat.prompt_tokens, stat.hits.tokens) == (guarded.prompt_tokens, guarded.hits)
        assert stat.prompt_tokens == lru.prompt_tokens
        assert guarded.hits == hits


def test_a_shadow_of_the_policy_is_there_only_while_lru_is_active() -> None:
    steps = play("pbkv-paper", 20)
    guard = guard_of(steps)
    (lru,) = guard.shadows
    guard.fall_back()
    assert guard.shadows[0] is lru
    assert [shadow.cache.tree.nodes > 0 for shadow in guard.shadows] == [True, False], "it begins empty"
    steps.run(pack([1] * 40), pack([0]), "w", AGENTS[0])
    assert guard.shadows[1].cache.tree.nodes > 0
    guard.recover()
    assert guard.shadows == (lru,)
    assert (seen(steps).switches, seen(steps).lru_active) == (2, False)
    steps.cache.check_integrity()


def lru_share(stat: GuardStat) -> float:
    """Share of the evicted blocks that LRU chose."""
    evicted = stat.evicted_by_lru + stat.evicted_by_policy
    return stat.evicted_by_lru / evicted if evicted else 0.0


def test_a_bad_policy_costs_little() -> None:
    lru, guarded, alone = play("lru"), play(named(Hostile)), play(named(Hostile), guard=False)
    stat = seen(guarded)
    assert stat.lru_active
    assert stat.switches % 2
    assert guarded.cache.tiers.decisions["guard_fall_back"] - guarded.cache.tiers.decisions["guard_recover"] == 1
    assert stat.lru_hits.tokens == lru.hits
    assert guarded.hits >= 0.95 * lru.hits
    assert alone.hits < 0.8 * guarded.hits
    assert lru_share(stat) > 0.5


def test_a_good_policy_is_left_alone() -> None:
    guarded, alone = play(named(Informed)), play(named(Informed), guard=False)
    stat = seen(guarded)
    assert (stat.lru_active, stat.switches, stat.evicted_by_lru, lru_share(stat)) == (False, 0, 0, 0.0)
    assert guarded.hits == alone.hits == stat.policy_hits.tokens > stat.lru_hits.tokens
    assert stat.evicted_by_policy > 0


def test_what_was_bad_may_become_good() -> None:
    steps = player(named(Reformed), 160)
    for number, prompt in enumerate(hot_and_cold(0, 4000)):
        steps.run(prompt, pack([0]), f"w{number % 8}", AGENTS[0])
        if steps.clock.now() < REFORM_S:
            bad = seen(steps).lru_active
    assert bad
    assert not seen(steps).lru_active
    assert 0 < lru_share(seen(steps)) < 1
    steps.cache.check_integrity()


def test_the_way_back_opens_once_the_shadow_of_the_policy_has_been_full() -> None:
    steps = play(named(Informed))
    guard = guard_of(steps)
    guard.fall_back()
    waited = 0
    for prompt in hot_and_cold(1, 3000):
        full = guard.shadows[1].has_dropped
        steps.run(prompt, pack([0]), "w", AGENTS[0])
        if not seen(steps).lru_active:
            break
        waited += not full
    assert full
    assert waited > 10
    assert not seen(steps).lru_active


def test_a_preempted_step_counts_once() -> None:
    steps = player("pbkv-paper", 40)
    prompt = pack(range(65))
    steps.run(prompt, b"", "w", "planner")
    before = seen(steps)
    steps.run(prompt, b"", "w", "planner", again=True)
    assert seen(steps) == before
    steps.run(prompt, b"", "w", "planner")
    assert seen(steps).lru_hits.tokens == 64


def test_a_shadow_without_room_counts_what_it_holds() -> None:
    steps = player("pbkv-paper", 12)
    guard = guard_of(steps)
    guard.fall_back()
    prompt = pack(range(4 * BLOCK_TOKENS + 1))
    steps.run(prompt, b"", "w", "planner")
    for shadow in guard.shadows:  # as if what runs there were longer
        assert shadow.cache.open(StepIdentity(SPACE, "x", "planner", 0, 1), pack(range(9000, 9001))) is not None
        assert shadow.cache.tiers.take(8) is not None
    steps.run(prompt + pack([7] * 64), b"", "w", "planner")
    assert seen(steps).lru_hits.tokens == seen(steps).policy_hits.tokens == 4 * BLOCK_TOKENS
    assert all(not shadow.running for shadow in guard.shadows)


def test_shadows_forget_with_the_cache() -> None:
    steps = player("pbkv-paper", 160)
    guard_of(steps).fall_back()
    for prompt in hot_and_cold(0, 20):
        steps.run(prompt, pack([0]), "w", AGENTS[0])
    assert all(shadow.cache.tree.nodes > 0 for shadow in guard_of(steps).shadows)
    assert steps.cache.clear() > 0
    assert [shadow.cache.tree.nodes for shadow in guard_of(steps).shadows] == [0, 0]


def test_lru_needs_no_guard_and_others_can_do_without() -> None:
    assert cache_of("lru", 10)[0].guard() is None
    assert cache_of("pbkv-paper", 10, guard=False)[0].guard() is None
    with pytest.raises(InvalidArgument, match=r"cache\.policy"):
        cache_of("clairvoyance", 10)


def test_hits_on_the_gpu_do_not_make_up_for_those_lost_in_the_host() -> None:
    sizes: dict[str, Any] = {"blocks": 64, "host_blocks": 160}
    fields = {**sizes, "host_policy": named(Perverse)}
    lru, alone, guarded = play("lru", **sizes), play(named(Informed), guard=False, **fields), play(named(Informed), **fields)
    assert alone.hits > 1.5 * lru.hits
    assert alone.hits_any < 0.5 * lru.hits_any
    assert seen(guarded).lru_active
    assert guarded.hits_any > 0.98 * lru.hits_any


def test_the_shadow_of_the_policy_reads_the_record_of_the_cache_and_that_of_lru_none() -> None:
    steps = player("pbkv-paper", 64)
    guard_of(steps).fall_back()
    for agent in AGENTS:
        assert steps.run(pack([1] * 40), pack([2] * 40), "w", agent)
    (owner,) = steps.cache.workflows.all()
    lru, policy = ({each.id: each for each in shadow.cache.workflows.all()}["w"] for shadow in guard_of(steps).shadows)
    assert policy.record is owner.record
    assert {node.owners[lru] for node in lru.nodes} == set(UNRECORDED.segments)
    assert len(owner.record.steps) == 2, "each step is recorded once"
    for node in policy.nodes:
        assert set(node.owners[policy].agents) == set(AGENTS)


@pytest.mark.parametrize("policy", ["lru", "retired-lru", "lfu"])
def test_policies_that_do_not_ask_for_a_record_have_none(policy: str) -> None:
    steps = player(policy, 64, guard=False)
    assert steps.run(pack([1] * 40), pack([2] * 40), "w", AGENTS[0])
    (owner,) = steps.cache.workflows.all()
    assert owner.record.steps == []
    assert steps.cache.popularity.blocks == 0
    assert len(owner.nodes) == 1, "and nothing cuts its nodes"
