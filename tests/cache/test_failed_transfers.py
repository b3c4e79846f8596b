"""Random histories in which copies fail, and caches that are rebuilt from what the host tier has kept."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.tiers.pool import SlotState
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import ABSENT, Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel, StoredBlock, chain_keys
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from tests.cache.late_transfers import GARBAGE, LateEngine, TaggedEngine
from tests.cache.test_cache_model import CAPACITIES, SPACES, Driver, named, patient

__all__ = ["patient"]  # for all tests here


class LabelledEngine(TaggedEngine):
    """Keeps the labels of what it copies to slower tiers."""

    labelled = True

    def __init__(self) -> None:
        super().__init__()
        self.labels: dict[tuple[Tier, int], BlockLabel] = {}

    def submit(self, transfer: Transfer) -> bool:
        done = super().submit(transfer)
        if transfer.target is not Tier.GPU:
            for slot, label in zip(transfer.target_slots, transfer.labels, strict=True):
                assert label.is_consistent
                assert self.content[transfer.target, slot] == label.key, "a block got the label of another"
                self.labels[transfer.target, slot] = label
        return done

    def erase(self, tier: Tier, slots: Slots) -> None:
        for slot in slots:
            self.labels.pop((tier, slot), None)


class FailingEngine(LateEngine):
    """Some blocks do not arrive, and none that was to be copied from where such a block should be."""

    labelled = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._fate = random.Random(seed)

    def _copy(self, transfer: Transfer) -> None:
        lost = {slot for earlier in transfer.after for slot in earlier.failed}
        failed = []
        for source, target in zip(transfer.source_slots, transfer.target_slots, strict=True):
            if source in lost or self._fate.random() < 0.3:
                failed.append(target)
                self.content[transfer.target, target] = GARBAGE
            else:
                assert self.content[transfer.source, source] != GARBAGE, "what was lost is copied"
                self.content[transfer.target, target] = self.content[transfer.source, source]
        transfer.failed = new_slots(failed)


class UnbackedEngine(LateEngine):
    """Some slots of the host have no memory, and are named to the cache when it tries them."""

    labelled = True

    def __init__(self, seed: int, unbacked: Sequence[int]) -> None:
        super().__init__(seed)
        self._unbacked = set(unbacked)
        self.tried: list[int] = []

    def _copy(self, transfer: Transfer) -> None:
        lost = {slot for earlier in transfer.after for slot in earlier.failed}
        unbacked = self._unbacked if transfer.target is Tier.HOST else ()
        transfer.unbacked = new_slots(slot for slot in transfer.target_slots if slot in unbacked)
        self.tried += transfer.unbacked
        failed = []
        for source, target in zip(transfer.source_slots, transfer.target_slots, strict=True):
            if source in lost or target in unbacked:
                failed.append(target)
                self.content[transfer.target, target] = GARBAGE
            else:
                self.content[transfer.target, target] = self.content[transfer.source, source]
        transfer.failed = new_slots(failed)


class FailingDriver(Driver):
    """Opens sequences again whose blocks did not arrive, as a scheduler does."""

    def check_bytes(self, handle: CacheHandle, keys: Sequence[bytes]) -> None:
        if self.cache.tiers.gpu.pool.spoiled.isdisjoint(handle.table.slots):
            super().check_bytes(handle, keys)
        else:
            assert not self.cache.is_ready(handle), "a block that did not arrive would be computed on"

    def recover(self) -> None:
        for handle in self.cache.broken():
            (step,) = [each for each in self.running if each.handle is handle]
            self.cache.close(handle)
            self.running.remove(step)
            self.preempted.append(step)

    def compute(self) -> None:
        for step in self.running:
            self.cache.wait(step.handle)
        self.recover()
        super().compute()

    def step(self) -> None:
        self.recover()
        super().step()


@pytest.mark.parametrize("capacity", [CAPACITIES[1], CAPACITIES[2], CAPACITIES[4]], ids=named)
@pytest.mark.parametrize(("policy", "write_through"), [("lru", False), ("lru", True), ("pbkv-paper", False)])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
@example(seed=3)
def test_a_block_that_does_not_arrive_is_never_delivered(
    policy: str, write_through: bool, capacity: Mapping[Tier, int], seed: int
) -> None:
    driver = FailingDriver(seed, capacity, policy, False, FailingEngine(seed), write_through)
    for _ in range(150):
        driver.step()
    driver.recover()
    driver.end()


def test_histories_have_copies_that_fail() -> None:
    decisions = Counter[str]()
    for seed in (1, 2):
        driver = FailingDriver(seed, CAPACITIES[3], "lru", False, FailingEngine(seed))
        for _ in range(300):
            driver.step()
        decisions.update(driver.cache.tiers.decisions)
    assert decisions["store_failed"] > 5
    assert decisions["load_failed"] > 0
    assert decisions["drop_spoiled"] > 10


@pytest.mark.parametrize("write_through", [False, True])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), backed=st.sampled_from([0, 1, 5]))
def test_slots_without_memory_are_tried_once_and_the_others_go_on_as_a_smaller_tier(
    write_through: bool, seed: int, backed: int
) -> None:
    capacity = CAPACITIES[1]
    engine = UnbackedEngine(seed, range(capacity[Tier.HOST] - backed))
    driver = FailingDriver(seed, capacity, "lru", False, engine, write_through)
    for _ in range(250):
        driver.step()
    pool, decisions = driver.cache.tiers[Tier.HOST].pool, driver.cache.tiers.decisions
    assert len(set(engine.tried)) == len(engine.tried) == decisions["slot_unbacked"] > 0, "a slot was tried again"
    driver.recover()
    driver.end()
    engine.catch_up()
    driver.cache.poll()
    assert pool.unbacked_slots == len(engine.tried)
    assert pool.free_slots == pool.room == pool.capacity - pool.unbacked_slots
    assert sum(pool.state(slot) is SlotState.UNBACKED for slot in range(pool.capacity)) == pool.unbacked_slots


# --- restarts ---


@pytest.mark.parametrize("write_through", [False, True])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_what_has_been_cleared_is_not_found_again(write_through: bool, seed: int) -> None:
    engine = LabelledEngine()
    driver = Driver(seed, CAPACITIES[1], "lru", False, engine, write_through)
    for _ in range(60):
        driver.step()
    driver.cache.clear()
    assert {label.key for label in engine.labels.values()} <= driver.cache.tiers.residency().keys()
    while driver.running:
        driver.finish()
    driver.cache.clear()
    assert engine.labels == {}


@pytest.mark.parametrize("write_through", [False, True])
@pytest.mark.parametrize("capacity", [CAPACITIES[1], CAPACITIES[2], CAPACITIES[3]], ids=named)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_a_restarted_cache_has_every_block_whose_path_was_kept(
    write_through: bool, capacity: Mapping[Tier, int], seed: int
) -> None:
    engine = LabelledEngine()
    first = Driver(seed, capacity, "pbkv-paper", False, engine, write_through)
    for _ in range(100):
        first.step()
    slower = [tier for tier in capacity if tier is not Tier.GPU]
    by_tier: dict[Tier, list[StoredBlock]] = {tier: [] for tier in slower}
    for (tier, slot), label in engine.labels.items():
        by_tier[tier].append(StoredBlock(slot, label, first.random.random()))
    for blocks in by_tier.values():
        first.random.shuffle(blocks)
    stored = [block for blocks in by_tier.values() for block in blocks]
    second = Driver(seed + 1, capacity, "pbkv-paper", True, engine, write_through)
    second.seen = first.seen
    found = second.cache.restore(by_tier)
    second.cache.check_integrity()
    second.check_announcements()
    whole = set[bytes]()
    parents = {block.label.key: block.label.parent for block in stored}
    namespaces = {block.label.namespace for block in stored}
    for key in parents:
        at = key
        while at in parents:
            at = parents[at]
        if at in namespaces:
            whole.add(key)
    assert set(second.cache.tiers.residency()) == whole
    assert len(whole) == found == second.cache.tiers.decisions["restore"]
    for node in second.cache.tree.walk():
        for tier, slots in zip(slower, node.slots[1:], strict=True):
            for block, slot in enumerate(slots):
                assert slot == ABSENT or engine.content[tier, slot] == node.key(block)
    for _ in range(100):  # and it is a cache like any other
        second.step()
    second.end()


def test_of_two_copies_the_newer_is_taken_and_a_wrong_label_is_left_out() -> None:
    space, tokens = SPACES[0].digest(), pack([1] * 16)
    label = BlockLabel(space, space, chain_keys(space, tokens)[0], tokens)
    fresh = Driver(0, CAPACITIES[2], "lru", False, TaggedEngine())
    fresh.engine.content[Tier.HOST, 5] = label.key
    wrong = label._replace(key=label.key[::-1])
    assert (
        fresh.cache.restore({Tier.HOST: [StoredBlock(3, label, 9.0), StoredBlock(5, label, 1.0), StoredBlock(6, wrong, 0.0)]})
        == 1
    )
    (node,) = fresh.cache.tree.walk()
    assert list(node.slots[1]) == [5]
    assert node.tokens == tokens


@pytest.mark.parametrize("capacity", [CAPACITIES[1], CAPACITIES[2], CAPACITIES[4]], ids=named)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_with_write_through_any_history_keeps_the_cache_right(capacity: Mapping[Tier, int], seed: int) -> None:
    early, late = (
        Driver(seed, capacity, "pbkv-paper", False, engine, write_through=True) for engine in (TaggedEngine(), LateEngine(seed))
    )
    for _ in range(150):
        for driver in (early, late):
            driver.step()
        assert late.cache.tiers.decisions == early.cache.tiers.decisions
    assert early.cache.tiers.decisions["write_through"] > 0
    for driver in (early, late):
        driver.end()
