"""Early demotion: what is next to leave the GPU has a copy by then, nothing waits for that, and it costs no block its place."""

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import GPU
from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.tool_call import ToolCall
from tests.cache.late_transfers import LateEngine
from tests.cache.test_cache_model import CAPACITIES, Driver, named

SPACE = Namespace("m", "r", "f", "l")


class DemotingDriver(Driver):
    """Demotes early between random events, and checks each time."""

    def __init__(self, seed: int, capacity: Mapping[Tier, int], policy: str, guard: bool) -> None:
        self.late = LateEngine(seed)
        super().__init__(seed, capacity, policy, guard, self.late, prefetch="none", demote_early=True)

    def step(self) -> None:
        super().step()
        on_gpu = {key for key, each in self.residency.items() if Tier.GPU in each.tiers}
        waited = self.late.waited
        self.cache.prefetcher.wake()
        self.cache.prefetcher.run(self.random.choice((0.0, 1.0)), [])
        assert self.late.waited == waited, "it has waited"
        assert {key for key, each in self.residency.items() if Tier.GPU in each.tiers} == on_gpu, "a block left the GPU for it"
        self.cache.check_integrity()
        self.check_ranks()
        nodes = list(self.cache.tree.walk())
        assert all(node.demoted_early <= node.held[GPU] for node in nodes)
        assert self.count.pending == sum(node.demoted_early for node in nodes), "a block's end was not counted"

    @property
    def count(self) -> PrefetchCount:
        return self.cache.tiers.prefetched.early.count


@pytest.mark.parametrize(("policy", "guard"), [("lru", False), ("pbkv-paper", True), ("pbkv", False)])
@pytest.mark.parametrize("capacity", CAPACITIES[:4], ids=named)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_history_keeps_the_cache_right(policy: str, guard: bool, capacity: Mapping[Tier, int], seed: int) -> None:
    driver = DemotingDriver(seed, capacity, policy, guard)
    for _ in range(120):
        driver.step()
    driver.end()


def test_random_histories_have_early_demotions_of_both_ends() -> None:
    driver = DemotingDriver(1, CAPACITIES[2], "lru", False)
    for _ in range(400):
        driver.step()
    assert driver.count.used > 10
    assert driver.count.wasted > 10


class Bus(LateEngine):
    """Copies nothing; a transfer is done when it is waited for, or when the bus catches up."""

    def _copy(self, transfer: Transfer) -> None:
        pass

    def completed(self) -> list[Transfer]:
        done, self._completed = self._completed, []
        return done


class Rig:
    """A cache of 48 GPU blocks, 6 of which are to be free or to have a copy. Each workflow has a text of 4 blocks."""

    def __init__(self, host: int = 80, policy: str = "lru", demote_early: bool = True, disk: int = 0) -> None:
        self.clock, self.bus = ManualClock(), Bus(0)
        config = CacheConfig(policy=policy, guard=False, demote_early=demote_early, decision_log_bytes=0)
        capacity = {Tier.GPU: 48, Tier.HOST: host} | ({Tier.DISK: disk} if disk else {})
        self.cache = make_cache(capacity, config, self.bus, self.clock)
        self.bus.watch(self.cache.tiers.pools)
        self.steps = 0

    def run(self, name: str) -> None:
        self.clock.advance(1.0)
        self.steps += 1
        text = text_of(name)
        handle = self.cache.open(StepIdentity(SPACE, name, "a", self.steps, count(text)), text)
        assert handle is not None
        assert self.cache.grow(handle, count(text))
        self.cache.commit(handle, text)
        self.cache.close(handle)

    def idle(self, seconds: float = 1.0) -> None:
        """The engine decodes for a while."""
        self.clock.advance(10.0)
        self.cache.prefetcher.run(seconds, [])
        self.settle()

    def settle(self) -> None:
        self.bus.catch_up()
        self.cache.poll()

    @property
    def count(self) -> PrefetchCount:
        return self.cache.tiers.prefetched.early.count

    def tiers(self, name: str) -> list[set[Tier]]:
        """Of each block of a workflow's text."""
        residency = self.cache.tiers.residency()
        return [set(residency[key].tiers) if key in residency else set() for key in block_keys(SPACE, text_of(name))]


def text_of(name: str) -> bytes:
    return pack([*random.Random(name).choices(range(1000), k=4 * BLOCK_TOKENS), 1])


def filled(**fields: object) -> Rig:
    rig = Rig(**fields)  # type: ignore[arg-type]
    for name in "abcdefghijk":
        rig.run(name)
    return rig


def test_a_step_does_not_wait_for_room_that_was_prepared() -> None:
    waited = {}
    for demote_early in (False, True):
        rig = filled(demote_early=demote_early)
        rig.run("l")  # the GPU is full then
        rig.idle()
        before = rig.bus.waited
        rig.run("m")
        waited[demote_early] = rig.bus.waited - before
    assert waited == {False: 1, True: 0}


def test_nothing_is_copied_while_there_is_room() -> None:
    rig = Rig()
    rig.run("a")
    rig.idle()
    assert rig.count.loaded == 0


def test_each_copy_ends_as_used_or_wasted() -> None:
    rig = filled()
    rig.run("l")
    rig.idle()
    copied = rig.count.loaded
    free = 48 - rig.cache.used_blocks(Tier.GPU)
    assert copied == 6 - free
    rig.run("m")  # 5 blocks
    assert (rig.count.used, rig.count.wasted) == (5 - free, 0)
    rig.idle()
    again = rig.count.loaded - copied
    assert again > 0
    for name in "bcdefghijklm":
        rig.run(name)
    assert rig.count.pending == 0
    assert rig.count.wasted + rig.count.used == copied + again


def test_what_is_worth_less_than_what_the_host_has_is_not_copied() -> None:
    rig = Rig(host=4, policy="pbkv")
    for name in "abcdefghijklmn":
        rig.run(name)
    held = rig.cache.used_blocks(Tier.HOST)
    assert held == 4
    for name in "ab":  # their next steps come at once, those of the others in an hour
        rig.cache.tool_call(name, ToolCall("t", name, 0.1), True)
    for name in "cdefghijklmn":
        rig.cache.tool_call(name, ToolCall("t", name, 3600.0), True)
    rig.idle()
    assert rig.count.loaded == 0


def test_a_block_with_a_copy_on_disk_takes_no_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bus, "seconds", lambda self, source, target, blocks: 0.1 * blocks)
    rig = Rig(host=4, disk=80)
    for name in "abcdefghijklmnoapqrstuvwxyz":
        rig.run(name)
        rig.settle()
    assert rig.tiers("a")[0] == {Tier.GPU, Tier.DISK}  # it is the next to leave the GPU
    rig.idle(seconds=0.25)  # the host makes room first, which nothing waits for
    rig.idle(seconds=0.25)
    assert rig.count.loaded > 0
    assert Tier.HOST not in rig.tiers("a")[0]


def test_where_the_host_has_few_free_slots_the_blocks_that_leave_next_are_copied() -> None:
    rig = Rig(host=3)
    for name in "abcdefghijkl":
        rig.run(name)
    rig.settle()
    assert [Tier.GPU in tiers for tiers in rig.tiers("a")] == [True, True, True, False]
    rig.idle()
    assert [Tier.HOST in tiers for tiers in rig.tiers("a")[:3]] == [False, True, True]


def test_a_block_that_has_left_the_gpu_is_not_dropped_for_an_early_copy() -> None:
    rig = Rig(host=1)
    for name in "abcdefghijkl":
        rig.run(name)
    rig.settle()
    before = rig.tiers("a")
    assert before == [{Tier.GPU}] * 3 + [{Tier.HOST}]
    rig.idle()
    assert rig.tiers("a") == before


def test_it_is_off_by_default() -> None:
    rig = Rig(demote_early=False)
    assert not CacheConfig().demote_early
    assert rig.cache.prefetcher.due_at is None
