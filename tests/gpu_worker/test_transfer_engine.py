"""Copies between a GPU pool and a region, by the engine's threads and as late as may be, with damage and without memory."""

import mmap
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.blocks import BlockLabel, Namespace, chain_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv import block_copies, host_arrivals
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.lanes.lane_speed import TRIAL_AFTER_S, TRIAL_BLOCKS
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from pbkv_cluster.store.arena import page_touch
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import Bytes, ReadResult, SlotReader
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.block_source import BlockPlace
from tests.polling import wait_for

CPU = torch.device("cpu")
SHAPE = KvShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)
GPU_BLOCKS, HOST_BLOCKS = 7, 5
SPACE = Namespace("m", "r", "f", "l").digest()


class Held(CpuCopies):
    """Copies that wait for a signal."""

    def __init__(self, storage: KvStorage) -> None:
        super().__init__(storage)
        self.go = threading.Event()

    def to_host(self, gpu_slots: Sequence[int], host_slots: Sequence[int], fence: None) -> None:
        self.go.wait(30)
        super().to_host(gpu_slots, host_slots, fence)


class NoSource:
    def connect(self, node: str) -> None:
        raise AssertionError("it is not asked")

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> Sequence[ReadResult]:
        raise AssertionError("it is not asked")


class HeldOthers(OtherWorkers):
    """Have every block, or those of some slots, and are reached after a signal."""

    has: Sequence[int] | None = None

    def __init__(self) -> None:
        super().__init__(BlockMap(), "node", "worker", {Tier.REMOTE: NoSource()})
        self.go = threading.Event()
        self.begun = threading.Event()
        self.reads = 0

    def read(self, tier: Tier, keys: Sequence[bytes], targets: Sequence[Bytes]) -> list[bool]:
        self.reads += 1
        self.begun.set()
        begun = time.monotonic()
        self.go.wait(30)
        self.lost_s[tier] += time.monotonic() - begun
        return [self.has is None or key in [label.key for label in labels(self.has)] for key in keys]


class Rig:
    """Pools with numbers that never repeat, and an engine."""

    def __init__(self, verify_share: float = 1.0, held: bool = False, others: OtherWorkers | None = None) -> None:
        self.clock = ManualClock()
        layout = RegionLayout(HOST_BLOCKS, SHAPE.block_bytes)
        self.memory = memoryview(mmap.mmap(-1, layout.size + mmap.PAGESIZE))  # longer, as a region of the arena may be
        self.region = HostRegion(layout, b"digest of a mod.", lambda: 5.0, self.memory)
        self.storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU, self.region.slots.payloads)
        for number, pool in enumerate((self.storage.gpu, self.storage.host)):
            pool.copy_(torch.arange(pool.numel()).view_as(pool) + number * 1_000_000)
        self.gpu, self.host = self.storage.gpu.clone(), self.storage.host.clone()  # what the pools should hold
        self.copies = Held(self.storage) if held else CpuCopies(self.storage)
        self.engine = ThreadedTransferEngine(self.copies, self.region, verify_share, others=others, now=self.clock.now)

    def submit(self, transfer: Transfer) -> Transfer:
        assert not self.engine.submit(transfer)
        return transfer

    def carry_out(self, transfer: Transfer) -> list[int]:
        """Returns the slots that got no block."""
        self.engine.wait((self.submit(transfer),))
        assert list(self.engine.completed()) == [transfer]
        assert not self.engine.completed(), "reported twice"
        return list(transfer.failed)


def labels(slots: Sequence[int]) -> list[BlockLabel]:
    blocks = [pack([slot] * 16) for slot in slots]
    return [BlockLabel(SPACE, SPACE, chain_keys(SPACE, tokens)[0], tokens) for tokens in blocks]


def store(gpu: Sequence[int], host: Sequence[int], after: Sequence[Transfer] = ()) -> Transfer:
    return Transfer(Tier.GPU, new_slots(gpu), Tier.HOST, new_slots(host), after, labels(gpu))


def fetch(target: Tier, slots: Sequence[int]) -> Transfer:
    return Transfer(Tier.REMOTE, new_slots(), target, new_slots(slots), (), labels(slots), patience_s=30.0)


def load(host: Sequence[int], gpu: Sequence[int], after: Sequence[Transfer] = ()) -> Transfer:
    return Transfer(Tier.HOST, new_slots(host), Tier.GPU, new_slots(gpu), after)


@given(
    gpu=st.permutations(range(GPU_BLOCKS)),
    host=st.permutations(range(HOST_BLOCKS)),
    targets=st.permutations(range(GPU_BLOCKS)),
    count=st.integers(1, HOST_BLOCKS),
)
def test_blocks_go_to_the_host_and_back_and_no_others_are_touched(
    gpu: list[int], host: list[int], targets: list[int], count: int
) -> None:
    rig = Rig()
    gpu, host, targets = gpu[:count], host[:count], targets[:count]
    stored = rig.submit(store(gpu, host))
    loaded = rig.submit(load(host, targets, after=(stored,)))
    rig.engine.wait((loaded,))
    assert list(rig.engine.completed()) == [stored, loaded]
    assert not stored.failed
    assert not loaded.failed
    rig.host[host] = rig.gpu[gpu]
    rig.gpu[targets] = rig.host[host]
    rig.engine.close()
    assert torch.equal(rig.storage.gpu, rig.gpu)
    assert torch.equal(rig.storage.host, rig.host)


def test_stored_blocks_say_what_they_are_and_anyone_can_read_them() -> None:
    rig = Rig()
    rig.carry_out(store([6], [2]))
    found = {block.slot: (block.label, block.age_s) for block in rig.region.stored()}
    assert found == {2: (labels([6])[0], 0.0)}
    reader = SlotReader(rig.memory, rig.region.layout)  # as another process maps it
    assert reader.find(labels([6])[0].key) == 2


@pytest.mark.parametrize(("verify_share", "found"), [(1.0, 4), (0.5, 2), (0.0, 0)])
def test_flipped_bytes_are_found_as_often_as_configured_and_the_slot_is_dropped(verify_share: float, found: int) -> None:
    rig = Rig(verify_share)
    rig.carry_out(store([0, 1, 2, 3], [0, 1, 2, 3]))
    rig.storage.host[:4, 5] += 1.0
    failed = rig.carry_out(load([0, 1, 2, 3], [3, 4, 5, 6]))
    assert len(failed) == found
    assert rig.engine.meter.damaged_blocks == found
    assert rig.engine.meter.blocks == {(Tier.GPU, Tier.HOST): 4, (Tier.HOST, Tier.GPU): 4 - found}
    assert len(list(rig.region.stored())) == 4 - found
    assert len(rig.carry_out(load([0, 1, 2, 3], [3, 4, 5, 6]))) >= found, "they stay lost"


def test_what_follows_a_failed_transfer_fails_with_it() -> None:
    rig = Rig(held=True)
    first = rig.submit(store([0, 1], [0, 1]))
    assert isinstance(rig.copies, Held)
    rig.copies.go.set()
    rig.engine.wait((first,))
    rig.storage.host[1] += 1.0
    rig.copies.go.clear()
    loaded = rig.submit(load([0, 1], [5, 6], after=(first,)))
    again = rig.submit(store([5, 6], [2, 3], after=(loaded,)))
    rig.copies.go.set()
    rig.engine.wait((loaded, again))
    assert list(rig.engine.completed()) == [first, loaded, again], "in the order of completion"
    assert (list(loaded.failed), list(again.failed)) == ([6], [3])
    assert {block.slot for block in rig.region.stored()} == {0, 2}, "no damaged block has got a good checksum"


def test_nothing_waits_for_a_copy_that_it_does_not_need() -> None:
    rig = Rig(held=True)
    rig.storage.gpu[0] = 7.0
    stored = rig.submit(store([0], [0]))
    assert rig.engine.completed() == []  # the engine's thread goes on, and other copies do
    assert isinstance(rig.copies, Held)
    rig.region.slots.write(1, labels([9])[0], np.zeros(SHAPE.block_bytes, np.uint8))
    assert rig.carry_out(load([1], [3])) == []
    assert not stored.done
    rig.copies.go.set()
    wait_for(lambda: list(rig.engine.completed()) == [stored])


def test_no_load_waits_behind_one_that_waits_for_another_node() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    stored = rig.submit(store([1], [1]))
    rig.engine.wait((stored,))
    staged = rig.submit(fetch(Tier.HOST, [0]))
    late = rig.submit(load([0], [3], after=(staged,)))
    assert late.layers is None, "no batch begins that would have to wait for another node"
    near = rig.submit(load([1], [4]))
    assert near.layers is not None
    rig.engine.wait((near,))
    rig.engine.wait((late,), timeout_s=1e-3)
    assert list(rig.engine.completed()) == [stored, near]
    others.go.set()
    rig.engine.wait((late,))
    assert list(rig.engine.completed()) == [staged, late]


def test_an_engine_that_closes_leaves_what_waits_for_another_node() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    late = rig.submit(load([0], [3], after=(rig.submit(fetch(Tier.HOST, [0])),)))
    threading.Timer(0.05, others.go.set).start()
    rig.engine.close()
    assert late not in rig.engine.completed()


def test_a_block_without_memory_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.carry_out(store([0], [1]))

    def full(slot: int) -> None:
        if slot == 1:
            raise ResourceExhausted("no memory")

    monkeypatch.setattr(rig.region, "ensure", full)
    stored = store([2, 3], [1, 2])
    assert rig.carry_out(stored) == list(stored.unbacked) == [1]
    assert {block.slot for block in rig.region.stored()} == {2}, "the block that was there is gone all the same"
    assert rig.carry_out(load([1, 2], [5, 6])) == [5]


def test_a_block_of_an_earlier_process_is_loaded_from_memory_that_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.carry_out(store([0, 1], [0, 3]))
    monkeypatch.setattr(page_touch, "PIECE_BYTES", mmap.PAGESIZE)
    pinned = set[int]()  # addresses

    def pin(address: int, size: int) -> None:
        pinned.update(range(address, address + size))

    layout = rig.region.layout
    region = HostRegion(layout, b"digest of a mod.", lambda: 5.0, rig.memory, pin=pin)
    storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU, region.slots.payloads)

    class Cuda(CpuCopies):
        """Refuses memory that is not pinned."""

        def to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: None) -> None:
            for slot in host_slots:
                start = storage.host[slot].data_ptr()
                assert pinned >= set(range(start, start + SHAPE.block_bytes)), "pinned in part"
            super().to_gpu(host_slots, gpu_slots, fence)

    engine = ThreadedTransferEngine(Cuda(storage), region)
    loaded = load([0, 3], [5, 6])
    assert not engine.submit(loaded)
    engine.wait((loaded,))
    assert not loaded.failed
    engine.close()
    assert torch.equal(storage.gpu[5:7], rig.gpu[:2])


def test_erased_slots_hold_nothing_and_the_others_what_they_held() -> None:
    rig = Rig(held=True)
    stored = rig.submit(store([0, 1, 2], [1, 2, 3]))
    assert isinstance(rig.copies, Held)
    rig.copies.go.set()
    rig.engine.erase(Tier.HOST, new_slots([0, 1, 3]))
    assert {block.slot for block in rig.region.stored()} == {2}
    assert list(rig.engine.completed()) == [stored]
    assert rig.carry_out(load([1, 2], [5, 6])) == [5]
    assert rig.carry_out(store([4], [1])) == []
    assert {block.slot for block in rig.region.stored()} == {1, 2}


def test_erasing_waits_for_nothing_that_was_given_up_and_is_done_when_that_has_ended() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    rig.carry_out(store([0, 1], [0, 1]))
    late = rig.submit(fetch(Tier.HOST, [2]))
    wait_for(others.begun.is_set)
    behind = rig.submit(fetch(Tier.HOST, [3]))
    late.given_up = True
    rig.engine.erase(Tier.HOST, new_slots([0, 2, 3]))
    assert {block.slot for block in rig.region.stored()} == {1}
    others.go.set()
    rig.engine.wait((late, behind))
    assert {block.slot for block in rig.region.stored()} == {1, 2, 3}, "they have arrived"
    assert set(rig.engine.completed()) == {late, behind}
    assert {block.slot for block in rig.region.stored()} == {1}
    assert not rig.carry_out(store([4], [2]))
    assert {block.slot for block in rig.region.stored()} == {1, 2}


def test_an_error_in_a_thread_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def broken(gpu_slots: Sequence[int], host_slots: Sequence[int], fence: None) -> None:
        raise ValueError("the device is gone")

    monkeypatch.setattr(rig.copies, "to_host", broken)
    stored = rig.submit(store([0], [0]))
    with pytest.raises(ValueError, match="the device is gone"):
        rig.engine.wait((stored,))
    with pytest.raises(RuntimeError, match="a copy between tiers has failed"):
        rig.engine.completed()


def test_each_direction_is_expected_to_take_what_it_has_taken_with_what_waits_there() -> None:
    rig = Rig(held=True)
    assert rig.engine.seconds(Tier.GPU, Tier.HOST, 10) == 0.0
    assert isinstance(rig.copies, Held)
    rig.copies.go.set()
    rig.carry_out(store([0, 1], [3, 4]))
    one = rig.engine.seconds(Tier.GPU, Tier.HOST, 1)
    assert one > 0.0
    assert rig.engine.seconds(Tier.GPU, Tier.HOST, 10) == pytest.approx(10 * one)
    assert rig.engine.seconds(Tier.HOST, Tier.GPU, 10) == 0.0
    rig.copies.go.clear()
    waiting = rig.submit(store([2, 3], [0, 1]))
    assert rig.engine.seconds(Tier.GPU, Tier.HOST, 1) == pytest.approx(3 * one)
    rig.copies.go.set()
    rig.engine.wait((waiting,))


def test_what_is_staged_from_a_place_delays_what_is_loaded_from_there() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    others.go.set()
    for target in (Tier.GPU, Tier.HOST):
        assert not rig.carry_out(fetch(target, [0, 1]))
    to_gpu, to_host = (rig.engine.seconds(Tier.REMOTE, target, 1) for target in (Tier.GPU, Tier.HOST))
    assert min(to_gpu, to_host) > 0.0
    others.go.clear()
    staging = rig.submit(fetch(Tier.HOST, [2, 3]))
    assert rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1) == pytest.approx(to_gpu + 2 * to_host)
    assert rig.engine.seconds(Tier.REMOTE, Tier.HOST, 1) == pytest.approx(3 * to_host)
    others.go.set()
    rig.engine.wait((staging,))
    rig.engine.close()


def test_what_does_not_arrive_says_nothing_of_how_fast_it_would_have_come() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    others.go.set()
    others.has = ()
    assert rig.carry_out(fetch(Tier.GPU, [0, 1])) == [0, 1]
    assert rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1) == 0.0
    others.has = (0,)
    others.go.clear()
    threading.Timer(0.2, others.go.set).start()
    assert rig.carry_out(fetch(Tier.GPU, [0, 1])) == [1]
    believed = rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1)
    assert 0.0 < believed < 0.1, "to reach the node took 0.2 s"
    for _ in range(9):
        assert rig.carry_out(fetch(Tier.GPU, [1])) == [1]
    assert rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1) == believed


def test_a_trial_is_due_while_nothing_is_copied_and_only_then() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    others.go.set()
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0
    rig.carry_out(fetch(Tier.GPU, [0, 1]))
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0
    rig.clock.advance(TRIAL_AFTER_S)
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == TRIAL_BLOCKS
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.HOST) == 0, "that has never been measured"
    others.go.clear()
    trial = rig.submit(fetch(Tier.GPU, [2]))
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0, "one is on its way"
    others.go.set()
    rig.engine.wait((trial,))
    assert list(rig.engine.completed()) == [trial]
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0


@pytest.mark.parametrize("target", [Tier.GPU, Tier.HOST])
def test_what_is_left_of_a_fetch_that_was_given_up_is_not_read(target: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_copies.CpuLanding, "blocks", 1)
    monkeypatch.setattr(host_arrivals, "BATCH", 1)
    others = HeldOthers()
    rig = Rig(others=others)
    rig.carry_out(store([0], [2]))
    late, queued = rig.submit(fetch(target, [0, 1, 2])), rig.submit(fetch(target, [3]))
    others.begun.wait(30)
    late.given_up = queued.given_up = True
    others.go.set()
    rig.engine.wait((late, queued))
    assert list(rig.engine.completed()) == [late, queued]
    assert (list(late.failed), list(queued.failed), others.reads) == ([1, 2], [3], 1)
    assert {block.slot for block in rig.region.stored()} <= {0} | ({2} if target is Tier.GPU else set())
    wanted = rig.submit(fetch(target, [4]))
    rig.engine.wait((wanted,))
    assert not wanted.failed
