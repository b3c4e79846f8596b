"""Prefetch: what is loaded ahead of its use, what may leave the GPU for it, and what becomes of it."""

import random
from collections.abc import Sequence
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.policies.base import ForesightPolicy
from pbkv_cluster.cache.prefetch.planner import PrefetchPlanner, QueuedPrompt
from pbkv_cluster.cache.prefetch.usefulness import Usefulness
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount, PrefetchSource
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine, Transfer
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from tests.cache.late_transfers import LateEngine, TaggedEngine
from tests.cache.test_cache_model import AGENTS, SPACES, Driver

Mode = Literal["none", "conservative", "queue"]
SPACE = Namespace("m", "r", "f", "l")
BLOCK_S = 0.01


class Bus(NullTransferEngine):
    """Copies at once, and says that each block takes a while."""

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return BLOCK_S * blocks


class LostBus(Bus):
    """What is loaded to the GPU does not arrive."""

    def __init__(self) -> None:
        self.open: list[Transfer] = []

    def submit(self, transfer: Transfer) -> bool:
        if transfer.target is not Tier.GPU:
            return True
        self.open.append(transfer)
        return False

    def completed(self) -> Sequence[Transfer]:
        done, self.open = self.open, []
        for transfer in done:
            transfer.failed = transfer.target_slots
        return done


class LateBus(LateEngine):
    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return BLOCK_S * blocks


class PromptBus(TaggedEngine):
    waited = 0

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return BLOCK_S * blocks


class PrefetchingDriver(Driver):
    """Prefetches between random events, and checks each prefetch."""

    loaded = 0  # blocks, ahead of use
    asked = 0  # blocks, by request

    def __init__(
        self, seed: int, policy: str, guard: bool, mode: Mode, bus: LateBus | PromptBus, host: int = 80, disk: int = 0
    ) -> None:
        capacity = {Tier.GPU: 16, Tier.HOST: host} | ({Tier.DISK: disk} if disk else {})
        super().__init__(seed, capacity, policy, guard, bus, prefetch=mode)
        self.mode, self.bus = mode, bus

    def prompt(self) -> bytes:
        stem = [self.random.randrange(8)] * self.random.choice((16, 48, 80))
        return pack(stem + [self.random.randrange(2) for _ in range(self.random.randrange(1, 90))])

    def forecast(self) -> None:
        self.epoch += 1
        steps = (StepForecast({self.random.choice(AGENTS): self.random.random()}, 1.0),)
        self.cache.apply(Forecast(f"w{self.random.randrange(4)}", self.epoch, 0.0, steps))

    def step(self) -> None:
        super().step()
        if self.random.random() < 0.5:
            self.bus.catch_up()
            self.cache.poll()
        self.ahead()
        self.cache.check_integrity()

    def prefetch(self) -> None:
        before = self.cache.tiers.prefetched.total.loaded
        super().prefetch()
        self.asked += self.cache.tiers.prefetched.total.loaded - before

    def ahead(self) -> None:
        prompts = [QueuedPrompt(step.space, step.tokens) for step in self.preempted[:3]]
        if self.random.random() < 0.5:
            prompts.append(QueuedPrompt(self.random.choice(SPACES), self.prompt()))
        seconds = self.random.choice((0.0, 0.05, 1.0))
        gpu, policy, now = self.cache.tiers.gpu, self.cache.policy, self.clock.now()
        by_lru = gpu.lru_active
        nodes = list(self.cache.tree.walk())
        before = {node: (self._keys(node), policy.value(node, now), node.retired, node.refs) for node in nodes}
        waited = self.bus.waited
        self.cache.prefetcher.wake()
        blocks = self.cache.prefetcher.run(seconds, prompts)
        assert blocks <= self.cache.prefetcher.budget(seconds), "it exceeds its budget"
        assert self.bus.waited == waited, "it has waited"
        self.loaded += blocks
        on_gpu = {key for node in self.cache.tree.walk() for key in self._keys(node)}
        gained = on_gpu - {key for keys, *_ in before.values() for key in keys}
        assert len(gained) == blocks, "what it loads for one it evicts for another"
        for keys, value, retired, refs in before.values():
            if keys <= on_gpu:
                continue
            assert not refs, "a block in use was evicted"
            if self.mode == "conservative":
                assert retired, "an active block was evicted"
            elif not retired and not by_lru and not policy.drifts:  # else it is what it was worth when it was last ranked
                assert isinstance(policy, ForesightPolicy)
                half = policy.halved(max(self._values(prompts, now), default=policy.certain_value(now)))
                assert value < half, "what is worth more than half was evicted"

    def _values(self, prompts: Sequence[QueuedPrompt], now: float) -> list[float]:
        """The values of what the last prefetch may have been for."""
        likely = [self.cache.policy.value(node, now) for node in self.cache.tree.walk() if node.prefetched]
        policy = self.cache.policy
        return [*likely, policy.certain_value(now)] if prompts and isinstance(policy, ForesightPolicy) else likely

    def _keys(self, node: Node) -> set[bytes]:
        return {node.key(block) for block in range(node.held[GPU])}


@pytest.mark.parametrize(("policy", "guard"), [("pbkv-paper", True), ("pbkv", False)])
@pytest.mark.parametrize("mode", ["conservative", "queue"])
@pytest.mark.parametrize("late", [False, True])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), slower=st.sampled_from(((80, 0), (4, 0), (8, 16), (16, 32))))
@example(seed=1058, slower=(4, 0))  # in which a rank is long out of date
@example(seed=0, slower=(8, 16))  # in which the slots of the slower tiers are busy
def test_prefetch_keeps_its_budget_and_what_is_worth_more(
    policy: str, guard: bool, mode: Mode, late: bool, seed: int, slower: tuple[int, int]
) -> None:
    driver = PrefetchingDriver(seed, policy, guard, mode, LateBus(seed) if late else PromptBus(), *slower)
    for _ in range(100):
        driver.step()
    driver.end()
    total = driver.cache.tiers.prefetched.total
    assert total.pending == 0, "a block's end was not counted"
    assert not total.cancelled


def test_random_histories_have_prefetches() -> None:
    total = PrefetchCount()
    for seed in (36, 60):  # in which a prefetched block is used
        driver = PrefetchingDriver(seed, "pbkv-paper", True, "queue", LateBus(seed))
        for _ in range(100):
            driver.step()
        total += driver.cache.tiers.prefetched.total
        assert driver.loaded == driver.cache.tiers.prefetched.total.loaded - driver.asked
    assert total.used
    assert total.wasted


class Rig:
    """A cache of 12 GPU and 40 host blocks. Workflow `w` has three blocks, `text(w)`, of one agent, `a-w`."""

    def __init__(self, mode: str, policy: str, guard: bool, bus: Bus) -> None:
        self.clock = ManualClock()
        config = CacheConfig.model_validate({"policy": policy, "guard": guard, "prefetch": mode})
        self.cache = make_cache({Tier.GPU: 12, Tier.HOST: 40}, config, bus, self.clock)
        self.epoch = 0

    def run(self, name: str, number: int = 0) -> int:
        """Runs a step. Returns the tokens that the GPU had."""
        self.clock.advance(1.0)
        tokens = text(name)
        handle = self.cache.open(StepIdentity(SPACE, name, f"a-{name}", number, count(tokens)), tokens)
        assert handle is not None
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        self.cache.close(handle)
        return handle.delivered.get(Tier.GPU, 0)

    def forecast(self, name: str, probability: float) -> None:
        self.epoch += 1
        steps = (StepForecast({f"a-{name}": probability}, 1.0),)
        self.cache.apply(Forecast(name, self.epoch, 0.0, steps))

    def on_gpu(self, name: str) -> int:
        return self.cache.captured(SPACE, text(name)).get(Tier.GPU, 0) // BLOCK_TOKENS

    def ahead(self, *queued: str, seconds: float = 1.0) -> int:
        self.clock.advance(10.0)
        return self.cache.prefetcher.run(seconds, [QueuedPrompt(SPACE, text(name)) for name in queued])

    @property
    def total(self) -> PrefetchCount:
        return self.cache.tiers.prefetched.total


def text(name: str) -> bytes:
    return pack([*random.Random(name).choices(range(1000), k=3 * BLOCK_TOKENS), 1])


@pytest.fixture
def rig() -> Rig:
    """Workflow `early` lies in host memory. Four others have all of the GPU but one block; none is expected to go on."""
    return filled()


def filled(mode: str = "queue", policy: str = "pbkv-paper", guard: bool = False, bus: Bus | None = None) -> Rig:
    rig = Rig(mode, policy, guard, bus or Bus())
    for name in ("early", "b", "c", "d", "e"):
        rig.run(name)
        rig.forecast(name, 0.05)
    assert rig.on_gpu("early") == 0
    return rig


def test_a_likely_next_agent_has_its_blocks_back_before_its_step(rig: Rig) -> None:
    rig.forecast("early", 0.9)
    assert rig.ahead() == 3
    assert rig.run("early", 1) == 3 * BLOCK_TOKENS
    assert (rig.total.used, rig.total.pending) == (3, 0)


def test_what_has_left_the_cache_for_another_is_not_loaded(rig: Rig) -> None:
    rig.run("f")
    assert rig.on_gpu("early") < 3 > rig.on_gpu("b")
    for name in ("early", "b"):
        rig.forecast(name, 0.9)
    likely = PrefetchPlanner(rig.cache.tree, rig.cache.tiers, rig.cache.workflows).likely(rig.clock.now())
    assert next(likely).node.parent is not None
    rig.cache.clear()
    assert not list(likely)


def test_unlikely_blocks_stay_in_host_memory(rig: Rig) -> None:
    rig.forecast("early", 0.02)
    assert rig.ahead() == 0


def test_nothing_leaves_for_what_is_not_worth_twice_as_much(rig: Rig) -> None:
    for name in "bcde":
        rig.forecast(name, 0.5)
    rig.forecast("early", 0.9)
    assert rig.ahead() == 1  # one block is free
    assert [rig.on_gpu(name) for name in "bcde"] == [2, 3, 3, 3]
    rig.forecast("c", 0.4)
    assert rig.ahead() == 2
    assert [rig.on_gpu(name) for name in "bcde"] == [2, 1, 3, 3]


def test_conservative_prefetch_takes_free_and_retired_space_only() -> None:
    rig = filled("conservative")
    rig.forecast("early", 1.0)
    assert rig.ahead() == 1
    rig.cache.retire("d")
    assert rig.ahead() == 2
    assert [rig.on_gpu(name) for name in "bcde"] == [2, 3, 1, 3]


def test_a_queued_step_has_its_blocks_on_the_gpu_when_it_is_admitted(rig: Rig) -> None:
    assert rig.ahead("early") == 3
    assert rig.cache.tiers.prefetched.count(PrefetchSource.QUEUE).pending == 3
    assert rig.run("early", 1) == 3 * BLOCK_TOKENS


def test_the_budget_is_the_bandwidth_times_the_time(rig: Rig) -> None:
    assert rig.ahead("early", seconds=2.5 * BLOCK_S) == 2
    assert rig.ahead("early", seconds=2.5 * BLOCK_S) == 1
    assert rig.ahead("early", seconds=BLOCK_S / 2) == 0


def test_while_lru_is_followed_only_queued_steps_are_prepared() -> None:
    rig = filled(guard=True)
    assert isinstance(rig.cache.observer, Guard)
    rig.cache.observer.fall_back()
    rig.forecast("early", 1.0)
    assert rig.ahead() == 0
    assert rig.ahead("early") == 3
    assert [rig.on_gpu(name) for name in "bcde"] == [0, 3, 3, 3]  # LRU's next victim has gone
    assert rig.run("early", 1) == 3 * BLOCK_TOKENS


@pytest.mark.parametrize("policy", ["lru", "continuum"])
def test_a_policy_without_a_scale_prepares_queued_steps_only(policy: str) -> None:
    rig = filled(policy=policy)
    rig.forecast("early", 1.0)
    assert rig.ahead() == 0
    assert rig.ahead("early") == 3


def test_nothing_is_prefetched_when_it_is_off() -> None:
    rig = filled("none")
    assert rig.cache.prefetcher.due_at is None
    assert rig.ahead("early") == 0


def test_blocks_of_an_ended_workflow_that_were_not_used_are_wasted(rig: Rig) -> None:
    assert rig.ahead("early") == 3
    rig.cache.retire("early")
    for name in "fghi":
        rig.run(name)
    assert (rig.total.used, rig.total.wasted) == (0, 3)


@pytest.mark.parametrize("ends", [False, True])
def test_blocks_that_do_not_arrive_are_cancelled_and_leave_nothing_behind(ends: bool) -> None:
    rig = filled(bus=LostBus())
    assert rig.ahead("early") == 3
    if ends:
        rig.cache.retire("early")
    rig.cache.check_integrity()
    rig.cache.poll()
    rig.cache.check_integrity()
    assert (rig.total.cancelled, rig.total.pending) == (3, 0)
    assert rig.cache.captured(SPACE, text("early")) == {}, "a damaged block is matched"
    rig.cache.clear()
    assert not any(pool.used_slots for pool in rig.cache.tiers.pools)


def test_a_useless_source_pauses_and_is_tried_again() -> None:
    useful = Usefulness()
    assert useful.allowance(PrefetchCount(), 0.0) == 512
    bad = PrefetchCount(loaded=300, used=50, wasted=250)
    assert useful.allowance(bad, 1.0) == 0
    assert useful.allowance(bad, 30.0) == 0
    assert useful.allowance(bad, 31.0) == 512
    still_bad = PrefetchCount(loaded=600, used=100, wasted=500)
    assert useful.allowance(still_bad, 40.0) == 0
    assert useful.allowance(still_bad, 99.0) == 0  # the second pause is twice as long
    assert useful.allowance(still_bad, 100.0) == 512
    good = PrefetchCount(loaded=1000, used=450, wasted=550)
    assert useful.allowance(good, 101.0) is None


def test_blocks_that_never_arrived_do_not_use_up_a_trial() -> None:
    useful = Usefulness()
    assert useful.allowance(PrefetchCount(loaded=512, cancelled=500), 0.0) == 500
    assert useful.allowance(PrefetchCount(loaded=1012, cancelled=1000), 1.0) == 500
