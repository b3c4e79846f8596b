"""Transfers that are under way when something else happens to their blocks."""

import math
from collections.abc import Iterable, Sequence

import pytest

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.in_flight import TransfersInFlight
from pbkv_cluster.cache.tiers.pool import BlockPool, SlotState
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine, Transfer
from pbkv_cluster.cache.tree.node import Slots, new_slots
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier

SPACE = Namespace("m", "r", "f", "l")
FREE, ARRIVING, RESIDENT, LEAVING = SlotState.FREE, SlotState.ARRIVING, SlotState.RESIDENT, SlotState.LEAVING


WAIT_S = 0.5  # for each transfer


class HeldEngine(NullTransferEngine):
    """Completes no transfer before it is told to, or the cache waits for it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.open: list[Transfer] = []
        self.waited: list[Transfer] = []
        self._completed: list[Transfer] = []

    def submit(self, transfer: Transfer) -> bool:
        self.open.append(transfer)
        return False

    def complete(self, transfer: Transfer) -> None:
        self.open.remove(transfer)
        self._completed.append(transfer)

    def completed(self) -> Sequence[Transfer]:
        completed, self._completed = self._completed, []
        return completed

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        for transfer in transfers:
            self.clock.advance(WAIT_S)
            self.waited.append(transfer)
            self.complete(transfer)


class Rig:
    """A cache of six GPU and eight host blocks, and prompts of three blocks."""

    def __init__(self) -> None:
        self.engine = HeldEngine()
        self.cache = KVCache({Tier.GPU: 6, Tier.HOST: 8}, CacheConfig(policy="lru"), self.engine, self.engine.clock)

    def run(self, number: int) -> None:
        prompt = prompt_of(number)
        handle = self.cache.open(StepIdentity(SPACE, "w", "a", 0, count(prompt)), prompt)
        assert handle is not None
        assert self.cache.grow(handle, count(prompt))
        self.cache.commit(handle, prompt)
        self.cache.close(handle)

    def fill_gpu(self) -> Slots:
        """Takes all slots of the GPU, which demotes what is there."""
        slots = self.cache.tiers.take(6)
        assert slots is not None
        return slots

    def states(self, tier: Tier) -> list[SlotState]:
        pool = self.cache.tiers[tier].pool
        return [pool.state(slot) for slot in range(pool.capacity)]

    def complete_all(self) -> None:
        for transfer in list(self.engine.open):
            self.engine.complete(transfer)
        self.cache.poll()


def prompt_of(number: int) -> bytes:
    return pack([number] * 49)


@pytest.fixture
def rig() -> Rig:
    """Prompt 1 lies in host memory, and its load has begun."""
    rig = Rig()
    rig.run(1)
    rig.cache.tiers.give(rig.fill_gpu())
    rig.complete_all()
    assert rig.cache.requests.prefetch(SPACE, prompt_of(1)).loaded == 48
    assert len(rig.engine.open) == 1
    rig.engine.waited.clear()
    return rig


def test_slots_are_taken_only_when_the_demotion_that_reads_them_is_done() -> None:
    rig = Rig()
    rig.run(1)
    rig.fill_gpu()
    (demotion,) = rig.engine.waited
    assert (demotion.source, demotion.target, len(demotion), demotion.done) == (Tier.GPU, Tier.HOST, 3, True)
    assert rig.cache.tiers.in_flight.waited_s == {Tier.GPU: WAIT_S, Tier.HOST: 0.0}


@pytest.mark.parametrize(("token_s", "demoted"), [(1.0, 3), (0.99, 0)])
def test_nothing_is_demoted_that_is_computed_sooner_than_loaded(token_s: float, demoted: int) -> None:
    class Engine(NullTransferEngine):
        def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
            return float(blocks * BLOCK_TOKENS)

    cache = KVCache(
        {Tier.GPU: 6, Tier.HOST: 8},
        CacheConfig(policy="lru"),
        Engine(),
        ManualClock(),
        compute_seconds=lambda tokens: tokens * token_s,
    )
    for number in (1, 2):
        handle = cache.open(StepIdentity(SPACE, "w", "a", number, 49), prompt_of(number))
        assert handle is not None
        assert cache.grow(handle, 49)
        cache.commit(handle, prompt_of(number))
        cache.close(handle)
    assert cache.tiers.take(6) is not None
    assert (cache.used_blocks(Tier.HOST), cache.tiers.decisions["demote"]) == (2 * demoted, 2 * demoted)
    assert cache.tiers.decisions["demote_skipped_slower"] == cache.tiers.decisions["drop"] == 6 - 2 * demoted


def test_what_many_transfers_have_in_common_is_looked_at_once() -> None:
    slots = new_slots((0,))
    first = Transfer(Tier.DISK, slots, Tier.GPU, slots)
    layer = [first]
    for _ in range(60):  # 2 ** 60 paths lead to the first one
        layer = [Transfer(Tier.HOST, slots, Tier.GPU, slots, layer) for _ in range(2)]
    assert len(layer[0].with_earlier()) == 1 + 59 * 2 + 1
    assert layer[0].may_be_late
    assert not Transfer(Tier.HOST, slots, Tier.GPU, slots).may_be_late


def test_a_loaded_block_arrives_while_its_source_stays(rig: Rig) -> None:
    assert rig.states(Tier.GPU).count(ARRIVING) == 3
    assert rig.states(Tier.HOST).count(RESIDENT) == 3
    rig.complete_all()
    assert rig.states(Tier.GPU).count(ARRIVING) == 0
    assert rig.states(Tier.GPU).count(RESIDENT) == 3


def test_a_sequence_waits_for_blocks_that_another_has_loaded(rig: Rig) -> None:
    handle = rig.cache.open(StepIdentity(SPACE, "w", "a", 1, 49), prompt_of(1))
    assert handle is not None
    assert handle.delivered == {Tier.HOST: 48}  # prefetched, but not there yet
    assert not handle.ready
    rig.cache.wait(handle)
    assert handle.ready
    assert not rig.engine.open


def test_what_is_evicted_while_it_arrives_leaves_when_it_has_arrived(rig: Rig) -> None:
    (load,) = rig.engine.open
    demoted = rig.cache.tiers.decisions["demote"]
    rig.fill_gpu()
    assert rig.engine.waited == [load], "its slots were free before the load had written them"
    assert rig.cache.tiers.decisions["demote"] == demoted, "the host has it"


def test_a_source_that_is_dropped_stays_until_it_has_been_read(rig: Rig) -> None:
    assert rig.cache.clear() == 3
    assert rig.states(Tier.HOST).count(LEAVING) == rig.states(Tier.GPU).count(LEAVING) == 3
    assert not rig.cache.used_blocks(Tier.GPU)
    assert not rig.cache.used_blocks(Tier.HOST)
    rig.cache.check_integrity()
    rig.complete_all()
    assert set(rig.states(Tier.HOST)) == set(rig.states(Tier.GPU)) == {FREE}
    rig.cache.check_integrity()


def test_a_sequence_that_gives_up_leaves_the_load_to_others(rig: Rig) -> None:
    handle = rig.cache.open(StepIdentity(SPACE, "w", "a", 1, 49), prompt_of(1))
    assert handle is not None
    rig.cache.close(handle)
    rig.complete_all()
    rig.cache.check_integrity()
    assert rig.cache.captured(SPACE, prompt_of(1)) == {Tier.GPU: 48}


def test_a_sequence_goes_on_with_what_it_has_computed_while_the_same_is_loaded(rig: Rig) -> None:
    rig.cache.clear()
    rig.complete_all()
    rig.run(1)
    first_block = prompt_of(1)[:64]
    handle = rig.cache.open(StepIdentity(SPACE, "w", "a", 2, 16), first_block)  # too short to use what is cached
    assert handle is not None
    assert rig.cache.grow(handle, 16)
    taken = rig.cache.tiers.take(5)  # what is cached goes to host memory
    assert taken is not None
    rig.cache.tiers.give(taken)
    assert rig.cache.requests.prefetch(SPACE, prompt_of(1)).loaded == 48
    computed = tuple(handle.table.slots)
    rig.cache.commit(handle, first_block)
    assert handle.ready
    assert tuple(handle.table.slots) == computed
    rig.cache.check_integrity()
    rig.complete_all()
    rig.cache.check_integrity()
    assert rig.cache.captured(SPACE, prompt_of(1)) == {Tier.GPU: 48}


class TestChains:
    """Slots of two pools, without a cache."""

    def setup_method(self) -> None:
        self.gpu, self.host = BlockPool(Tier.GPU, 4), BlockPool(Tier.HOST, 4)
        self.engine = HeldEngine()
        clock = ManualClock()
        pools = {Tier.GPU: self.gpu, Tier.HOST: self.host}
        self.transfers = TransfersInFlight(self.engine, pools, clock, DecisionLog(clock, 0))

    def complete(self, transfer: Transfer) -> None:
        self.engine.complete(transfer)
        self.transfers.poll()

    def test_what_leaves_and_is_wanted_again_is_loaded_from_where_it_arrives(self) -> None:
        source, place, target = self.gpu.take(1), self.host.take(1), self.gpu.take(1)
        self.transfers.submit(self.gpu, source, self.host, place)
        self.gpu.release(source)
        self.transfers.submit(self.host, place, self.gpu, target)
        demotion, load = self.engine.open
        assert list(load.after) == [demotion]
        self.complete(demotion)
        assert self.gpu.state(source[0]) is FREE
        assert (self.host.state(place[0]), self.gpu.state(target[0])) == (RESIDENT, ARRIVING)
        self.complete(load)
        assert self.gpu.state(target[0]) is RESIDENT

    def test_a_slot_is_free_when_the_last_transfer_that_reads_it_is_done(self) -> None:
        source, targets = self.host.take(1), self.gpu.take(2)
        for target in targets:
            self.transfers.submit(self.host, source, self.gpu, new_slots((target,)))
        self.host.release(source)
        first, second = self.engine.open
        self.complete(second)
        assert self.host.state(source[0]) is LEAVING
        self.complete(first)
        assert self.host.state(source[0]) is FREE

    def test_a_transfer_that_is_done_at_once_holds_nothing_back(self) -> None:
        clock = ManualClock()
        pools = {Tier.GPU: self.gpu, Tier.HOST: self.host}
        transfers = TransfersInFlight(NullTransferEngine(), pools, clock, DecisionLog(clock, 0))
        source, target = self.gpu.take(1), self.host.take(1)
        transfers.submit(self.gpu, source, self.host, target)
        self.gpu.release(source)
        assert (self.gpu.state(source[0]), self.host.state(target[0])) == (FREE, RESIDENT)


@pytest.mark.parametrize(("leased", "evicted"), [(False, 4), (True, 1)])
def test_a_victim_gives_up_a_few_blocks_ahead_unless_it_is_leased(leased: bool, evicted: int) -> None:
    """So that decodes, which want one block at a time, do not rank and demote for each of them."""
    cache = KVCache({Tier.GPU: 512, Tier.HOST: 512}, CacheConfig(policy="lru", lease_share=1.0), HeldEngine(), ManualClock())
    prompt = pack(range(100 * BLOCK_TOKENS + 1))
    handle = cache.open(StepIdentity(SPACE, "w", "a", 0, count(prompt)), prompt)
    assert handle is not None
    assert cache.grow(handle, count(prompt))
    cache.commit(handle, prompt)
    cache.close(handle)
    if leased:
        assert cache.requests.lease(SPACE, prompt, "lease", 1e6, "").leased == 100 * BLOCK_TOKENS
    assert cache.tiers.take(412) is not None
    for taken in range(1, 6):
        assert cache.tiers.take(1) is not None
        assert cache.tiers.gpu.pool.used_slots == 412 + 100 - evicted * math.ceil(taken / evicted) + taken
        assert cache.tiers.decisions["demote"] == evicted * math.ceil(taken / evicted)
