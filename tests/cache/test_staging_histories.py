"""Staging between random events: what it must never do, and that each block has one end."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.prefetch.planner import QueuedPrompt
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.cache.tree.prefix_tree import lineage
from pbkv_cluster.core.usage import Tier
from tests.cache.test_cache_model import SPACES
from tests.cache.test_failed_transfers import FailingDriver
from tests.cache.test_fetches import FetchingEngine, Others


class StagingDriver(FailingDriver):
    """Stages between random events, and checks each time."""

    def __init__(self, seed: int, capacity: Mapping[Tier, int], policy: str) -> None:
        self.late = FetchingEngine(seed)
        super().__init__(seed, capacity, policy, True, self.late, False, Others(), "none", stage=True)

    def step(self) -> None:
        super().step()
        if self.random.random() < 0.1:
            self.retire()
            self.late.catch_up()
            self.cache.poll()
        before = {key: set(each.tiers) for key, each in self.residency.items()}
        active = {node.key(block) for node in self.cache.tree.walk() if not node.retired for block in range(node.blocks)}
        waited = self.late.waited
        self.cache.prefetcher.wake()
        prompts = [self.queued() for _ in range(self.random.choice((0, 1, 1, 3)))]
        self.cache.prefetcher.run(self.random.choice((0.0, 1.0)), prompts)
        assert self.late.waited == waited, "it has waited"
        for key, tiers in before.items():
            now = set(self.residency[key].tiers) if key in self.residency else set()
            assert (Tier.GPU in tiers) == (Tier.GPU in now), "a block left or entered the GPU for it"
            assert key not in active or not tiers & {Tier.HOST} - now, "a block of an active workflow left host memory for it"
        self.cache.check_integrity()
        self.seen.update(node.key(block) for node in self.cache.tree.walk() if node.staged for block in range(node.blocks))
        self.check_count()

    def queued(self) -> QueuedPrompt:
        """A prompt; of two, about one begins with blocks that the disk alone has, where there are any."""
        slow = [node for node in self.cache.tree.walk() if not any(node.held[:2])]
        if not slow or self.random.random() < 0.5:
            return QueuedPrompt(self.random.choice(SPACES), self.prompt())
        path = list(lineage(self.random.choice(slow)))[::-1]
        space = next(each for each in SPACES if self.cache.tree.root(each) is path[0].parent)
        return QueuedPrompt(space, b"".join(node.tokens for node in path))

    def check_count(self) -> None:
        """What is pending lies where a step would find it sooner, as the cache itself has announced."""
        staged = [
            node.key(each) for node in self.cache.tree.walk() if node.staged is not None for each in node.staged.numbers()
        ]
        near = [key for key in staged if {Tier.GPU, Tier.HOST} & set(self.residency[key].tiers)]
        assert self.total.pending == len(near), "a block's end was not counted"

    @property
    def total(self) -> PrefetchCount:
        return self.cache.tiers.prefetched.staging.total


CAPACITIES = [{Tier.GPU: 24, Tier.HOST: 30}, {Tier.GPU: 24, Tier.HOST: 20, Tier.DISK: 80}]


@pytest.mark.parametrize("policy", ["lru", "pbkv-paper", "pbkv"])
@pytest.mark.parametrize("capacity", CAPACITIES, ids=["two tiers", "with a disk"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_history_keeps_the_cache_right(policy: str, capacity: Mapping[Tier, int], seed: int) -> None:
    driver = StagingDriver(seed, capacity, policy)
    for _ in range(120):
        driver.step()
    driver.recover()
    driver.end()
    assert driver.total.pending == 0


def test_random_histories_have_staged_blocks_of_every_end() -> None:
    total, decisions = PrefetchCount(), Counter[str]()
    for seed in range(12):
        driver = StagingDriver(seed, CAPACITIES[1], "pbkv-paper")
        for _ in range(200):
            driver.step()
        total += driver.total
        decisions += driver.cache.tiers.decisions
    assert min(total.used, total.wasted, total.cancelled) > 0
    assert min(decisions["stage_from_disk"], decisions["stage_from_remote"]) > 0
