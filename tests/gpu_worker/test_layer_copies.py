"""Loads that arrive layer by layer: what is there when, what fails late, and what comes as a whole."""

import math
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from pbkv_cluster.cache.tiers.transfer import LayerArrival, Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.gpu_worker.kv.layer_events import LayerEvent
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from tests.gpu_worker.transfer_rig import SHAPE, Rig, load, store

LAYERS = SHAPE.layers


class Stepwise(CpuCopies):
    """Copies one layer each time that it is told to."""

    def __init__(self, storage: KvStorage) -> None:
        super().__init__(storage)
        self.next = threading.Semaphore(0)
        self.breaks_at = LAYERS

    def layers_to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: None) -> Iterator[LayerEvent]:
        for layer, event in enumerate(super().layers_to_gpu(host_slots, gpu_slots, fence)):
            assert self.next.acquire(timeout=30)
            if layer == self.breaks_at:
                raise ValueError("the device is gone")
            yield event


class LayerRig(Rig):
    """Three blocks in the host tier, and an engine that copies them stepwise."""

    def __init__(self) -> None:
        super().__init__()
        self.carry_out(store([0, 1, 2], [0, 1, 2]))
        self.stepwise = Stepwise(self.storage)
        self.engine = ThreadedTransferEngine(self.stepwise, self.region)

    def layer(self, slot: int, layer: int) -> torch.Tensor:
        return self.storage.gpu[slot].view(LAYERS, -1)[layer]


def arrival(transfer: Transfer) -> LayerArrival:
    assert transfer.layers is not None
    return transfer.layers


@pytest.fixture
def rig() -> Iterator[LayerRig]:
    rig = LayerRig()
    yield rig
    rig.stepwise.next.release(LAYERS)
    rig.engine.close()


def test_a_layer_is_there_when_the_wait_for_it_ends_and_the_later_ones_need_not_be(rig: LayerRig) -> None:
    before = rig.storage.gpu[5].view(LAYERS, -1).clone()
    loaded = rig.submit(load([2, 0], [5, 6]))
    for layer in range(LAYERS):
        rig.stepwise.next.release()
        arrival(loaded).wait(layer)
        assert torch.equal(rig.layer(5, layer), rig.layer(2, layer))
        assert torch.equal(rig.layer(6, layer), rig.layer(0, layer))
        if layer + 2 < LAYERS:
            assert torch.equal(rig.layer(5, layer + 2), before[layer + 2])
            assert not rig.engine.completed(), "it is done with its last layer"
    rig.engine.wait((loaded,))
    assert list(rig.engine.completed()) == [loaded]
    assert not loaded.failed


def test_a_wait_lasts_until_its_layer_has_come(rig: LayerRig) -> None:
    loaded, ended = rig.submit(load([0], [4])), threading.Event()

    def wait() -> None:
        arrival(loaded).wait(1)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    rig.stepwise.next.release()
    arrival(loaded).wait(0)
    assert not ended.is_set()
    rig.stepwise.next.release()
    assert ended.wait(30)
    thread.join()


def test_damage_is_found_when_the_layers_have_come(rig: LayerRig) -> None:
    rig.storage.host[1, 3] += 1.0
    loaded = rig.submit(load([0, 1, 2], [4, 5, 6]))
    rig.stepwise.next.release(LAYERS)
    arrival(loaded).wait(LAYERS - 1)
    rig.engine.wait((loaded,))
    assert list(rig.engine.completed()) == [loaded]
    assert list(loaded.failed) == [5]
    assert rig.engine.meter.damaged_blocks == 1
    assert {block.slot for block in rig.region.stored()} == {0, 2}


def test_a_block_without_a_header_is_not_copied_and_the_others_are(rig: LayerRig) -> None:
    rig.region.slots.clear(1)
    before = rig.storage.gpu[5].clone()
    loaded = rig.submit(load([0, 1], [4, 5]))
    rig.stepwise.next.release(LAYERS)
    rig.engine.wait((loaded,))
    assert list(loaded.failed) == [5]
    assert torch.equal(rig.storage.gpu[5], before)
    assert torch.equal(rig.storage.gpu[4], rig.gpu[0])


def test_a_wait_ends_when_the_layer_will_never_come(rig: LayerRig) -> None:
    rig.stepwise.breaks_at = 1
    rig.stepwise.next.release(2)
    loaded = rig.submit(load([0], [4]))
    arrival(loaded).wait(LAYERS - 1)
    with pytest.raises(ValueError, match="the device is gone"):
        rig.engine.wait((loaded,))
    with pytest.raises(RuntimeError, match="a copy between tiers has failed"):
        rig.engine.completed()


def test_what_nothing_waits_for_comes_as_a_whole(rig: LayerRig) -> None:
    prefetched = rig.submit(Transfer(Tier.HOST, new_slots([0]), Tier.GPU, new_slots([4]), urgent=False))
    assert prefetched.layers is None
    stored = rig.submit(store([1], [3]))
    assert stored.layers is None
    rig.engine.wait((prefetched, stored))
    whole = ThreadedTransferEngine(rig.stepwise, rig.region, by_layer=False)
    loaded = load([1], [5])
    whole.submit(loaded)
    assert loaded.layers is None
    whole.wait((loaded,))
    whole.close()
    assert torch.equal(rig.storage.gpu[4:6], rig.gpu[:2])


def test_the_time_left_shrinks_with_each_layer(rig: LayerRig) -> None:
    first = rig.submit(load([0], [4]))
    assert arrival(first).seconds_left() == math.inf, "nothing has been measured"
    rig.stepwise.next.release(LAYERS)
    rig.engine.wait((first,))
    rig.engine.completed()
    block = rig.engine.seconds(Tier.HOST, Tier.GPU, 1)
    loaded, later = rig.submit(load([0, 1], [4, 5])), rig.submit(load([2], [6]))
    assert arrival(loaded).seconds_left() == pytest.approx(3 * block)
    rig.stepwise.next.release()
    arrival(loaded).wait(0)
    assert arrival(loaded).seconds_left() == pytest.approx((1 + 2 * (1 - 1 / LAYERS)) * block)
    rig.stepwise.next.release(2 * LAYERS)
    rig.engine.wait((loaded, later))
