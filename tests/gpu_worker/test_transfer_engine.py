"""Copies between a GPU pool and a region: what arrives, with damage and without memory."""

import mmap
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from pbkv_cluster.store.arena import page_touch
from pbkv_cluster.store.arena.slots import SlotReader
from tests.gpu_worker.transfer_rig import (
    CPU,
    GPU_BLOCKS,
    HOST_BLOCKS,
    SHAPE,
    Held,
    HeldOthers,
    Rig,
    fetch,
    labels,
    load,
    store,
)
from tests.polling import wait_for


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
