"""Loads from a disk that takes longer than the steps that wait for them would compute."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from tests.cache.staging_rig import BLOCK_S, Rig
from tests.cache.test_cache_model import Driver, named
from tests.cache.test_failed_transfers import FailingDriver
from tests.cache.test_fetches import FetchingEngine, Others
from tests.cache.test_leases import TEXT, space, text

CAPACITIES = [{Tier.GPU: 14, Tier.HOST: host, Tier.DISK: 60} for host in (0, 4)]


class LateDriver(FailingDriver):
    """Waits in slices, between which clients ask for blocks, as a busy worker does."""

    def compute(self) -> None:
        if self.running and self.random.random() < 0.2:
            self.cache.wait(self.random.choice(self.running).handle, 0.005)
            self.cache.check_integrity()
            self.prefetch()
        super().compute()


def drive(seed: int, capacity: Mapping[Tier, int], write_through: bool, steps: int = 150) -> Driver:
    others = Others() if seed % 2 else NOWHERE
    driver = LateDriver(seed, capacity, "lru", True, FetchingEngine(seed), write_through, others)
    for _ in range(steps):
        driver.step()
    return driver


@pytest.mark.parametrize("capacity", CAPACITIES, ids=named)
@pytest.mark.parametrize("write_through", [False, True])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_only_what_has_arrived_is_delivered(write_through: bool, capacity: Mapping[Tier, int], seed: int) -> None:
    driver = drive(seed, capacity, write_through)
    assert isinstance(driver, FailingDriver)
    driver.recover()
    driver.end()


def test_histories_have_late_loads() -> None:
    decisions = sum((drive(seed, CAPACITIES[0], False, steps=300).cache.tiers.decisions for seed in range(6)), Counter[str]())
    assert decisions["load_late"] > 5


def test_a_step_computes_what_the_disk_does_not_bring_in_time_and_the_disk_is_left_alone_meanwhile() -> None:
    rig = Rig(disk=40, compute_s=2.0)
    rig.run_and_end("abcdefg")
    assert rig.tiers("a") == rig.tiers("b") == {Tier.DISK: TEXT}

    def opened(name: str) -> StepIdentity:
        return StepIdentity(space(), f"later-{name}", "a", 1, count(text(name, TEXT)))

    handle = rig.cache.open(opened("a"), text("a", TEXT))
    assert handle is not None
    assert handle.delivered == {Tier.DISK: count(text("a", TEXT)) - 1}
    rig.clock.advance(1.9)
    rig.cache.poll()
    assert not rig.cache.broken()
    rig.clock.advance(0.2)
    rig.cache.poll()
    assert rig.cache.broken() == [handle]
    slots = tuple(handle.table.slots)
    rig.cache.close(handle)
    pool = rig.cache.tiers.gpu.pool
    assert not set(slots) & set(pool.free()), "the disk may still write to them"
    assert rig.cache.tiers.room() == pool.capacity - TEXT, "nobody is promised what may take for ever"
    other = rig.cache.open(opened("b"), text("b", TEXT))
    assert other is not None
    assert other.delivered == {}, "it would have to wait for the same disk"
    rig.cache.close(other)
    rig.settle()
    assert set(slots) <= set(pool.free())
    assert rig.cache.tiers.room() == pool.capacity
    assert rig.tiers("a") == {Tier.DISK: TEXT}, "what is slow to read is sound"
    assert rig.run("b") == {Tier.DISK: count(text("b", TEXT)) - 1}
    assert rig.cache.tiers.decisions["load_late"] == TEXT
    assert rig.cache.tiers.decisions["load_failed"] == rig.cache.tiers.decisions["drop_spoiled"] == 0


def test_a_late_read_costs_the_disk_nothing_and_what_follows_the_prefix_can_still_be_loaded() -> None:
    rig, lost = Rig(disk=60, compute_s=2.0), 30.0

    def tokens(*numbers: int) -> bytes:
        return pack([number for number in numbers for _ in range(BLOCK_TOKENS)] + [0])

    def opened(name: str, *numbers: int) -> CacheHandle:
        prompt = tokens(*numbers)
        handle = rig.cache.open(StepIdentity(space(), name, "a", 1, count(prompt)), prompt)
        assert handle is not None
        return handle

    contexts = [(1, 2, 3, 10 + at, 20 + at, 30 + at) for at in range(4)]
    for numbers in contexts:
        rig.clock.advance(1.0)
        handle = opened(f"w{numbers[-1]}", *numbers)
        assert rig.cache.grow(handle, count(tokens(*numbers)))
        rig.cache.commit(handle, tokens(*numbers))
        rig.cache.close(handle)
        rig.settle()
    for numbers in contexts:
        rig.cache.retire(f"w{numbers[-1]}")
    rig.run_and_end("abcdefg")
    used = rig.cache.used_blocks(Tier.DISK)
    for _ in range(2):
        handle = opened("prefix", 1, 2, 3, 99)
        assert handle.delivered == {Tier.DISK: 3 * BLOCK_TOKENS}
        rig.clock.advance(lost)
        rig.cache.poll()
        assert rig.cache.broken() == [handle]
        rig.cache.close(handle)
        rig.settle()
    assert rig.cache.used_blocks(Tier.DISK) >= used
    for numbers in contexts:
        assert rig.cache.captured(space(), tokens(*numbers)) == {Tier.DISK: 6 * BLOCK_TOKENS}


def test_a_step_waits_for_nothing_that_it_has_computed() -> None:
    rig = Rig(disk=40, compute_s=2.0)
    rig.run_and_end("abcdefg")
    tokens, rig.compute_s = text("a", TEXT), 0.0001
    assert rig.tiers("a") == {Tier.DISK: TEXT}
    handle = rig.cache.open(StepIdentity(space(), "later", "a", 1, count(tokens)), tokens)
    assert handle is not None
    assert handle.delivered == {}, "to load it takes longer"
    rig.compute_s = 2.0
    assert rig.cache.grow(handle, count(tokens))
    computed = tuple(handle.table.slots[:TEXT])
    assert rig.cache.requests.prefetch(space(), tokens).loaded == TEXT * BLOCK_TOKENS
    rig.cache.commit(handle, tokens)
    assert rig.cache.is_ready(handle)
    assert tuple(handle.table.slots[:TEXT]) == computed
    rig.clock.advance(3600)
    rig.cache.poll()
    assert not rig.cache.broken()
    rig.cache.check_integrity()
    rig.cache.close(handle)
    rig.settle()
    assert rig.tiers("a") == {Tier.GPU: TEXT}


def test_a_step_that_has_computed_what_another_waits_for_waits_no_longer_than_that_one() -> None:
    rig = Rig(disk=40, compute_s=2.0)
    rig.run_and_end("abcdefg")
    tokens, rig.compute_s = text("a", TEXT), 0.0001
    first = rig.cache.open(StepIdentity(space(), "first", "a", 1, count(tokens)), tokens)
    assert first is not None
    rig.compute_s = 2.0
    second = rig.cache.open(StepIdentity(space(), "second", "a", 1, count(tokens)), tokens)
    assert second is not None
    assert second.delivered == {Tier.DISK: TEXT * BLOCK_TOKENS}
    assert rig.cache.grow(first, count(tokens))
    rig.cache.commit(first, tokens)
    rig.cache.check_integrity()
    assert not rig.cache.is_ready(first)
    rig.clock.advance(2.1)
    rig.cache.poll()
    assert rig.cache.broken() == [first, second]


def test_near_blocks_are_not_given_up_with_those_that_are_still_being_staged() -> None:
    rig = Rig(disk=40, compute_s=2.0)
    rig.run_and_end("abcdefg")
    for seconds in (2.5 * BLOCK_S, 1.0):
        for _ in range(4):
            rig.settle()
            if rig.ahead("a", seconds=seconds):
                break
    tokens = text("a", TEXT)
    handle = rig.cache.open(StepIdentity(space(), "later", "a", 1, count(tokens)), tokens)
    assert handle is not None
    near, late = handle.waits_for
    assert (near.source, len(near), near.after) == (Tier.HOST, 2, [])
    assert (late.source, len(late)) == (Tier.HOST, 2)
    assert [each.source for each in late.after] == [Tier.DISK]
    rig.bus.end(near)
    rig.clock.advance(10.0)
    rig.cache.poll()
    assert rig.cache.broken() == [handle]
    rig.cache.close(handle)
    assert rig.tiers("a") == {Tier.GPU: 2, Tier.DISK: 2}
    rig.settle()
    assert rig.tiers("a") == {Tier.GPU: 2, Tier.DISK: 2}
