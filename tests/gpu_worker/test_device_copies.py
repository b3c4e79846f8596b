"""Every way to copy blocks moves the right bytes to the right slots: the CPU twin, and those of a GPU where there is one."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies, CpuCopies
from pbkv_cluster.gpu_worker.kv.copy_methods import METHODS
from pbkv_cluster.gpu_worker.kv.cuda_copies import CudaCopies, pin_for
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.store.arena.layout import RegionLayout

SHAPE = KvShape(layers=3, kv_heads=2, head_dim=8, dtype=torch.float32)
BLOCKS = 9
HAS_GPU = torch.cuda.is_available() and find_spec("cupy") is not None
WAYS = ["twin", *(METHODS if HAS_GPU else ())]

slots = st.integers(1, BLOCKS).flatmap(
    lambda count: st.tuples(*[st.permutations(range(BLOCKS)).map(lambda order: order[:count])] * 2)
)


class Rig:
    """Two pools of random numbers, and what they should hold."""

    def __init__(self, way: str) -> None:
        device = torch.device("cpu" if way == "twin" else "cuda")
        region = HostRegion(RegionLayout(BLOCKS, SHAPE.block_bytes), b"digest of a mod.", lambda: 5.0, pin=pin_for(device))
        for slot in range(BLOCKS):
            region.ensure(slot)
        self.storage = KvStorage(SHAPE, BLOCKS, BLOCKS, device, region.slots.payloads)
        self.copies: BlockCopies = CpuCopies(self.storage) if way == "twin" else CudaCopies(self.storage, way)
        self.storage.gpu.normal_()
        self.storage.host.normal_()
        self.gpu, self.host = self.storage.gpu.cpu().clone(), self.storage.host.clone()
        self.fence = self.copies.fence()

    def check(self) -> None:
        if self.storage.gpu.is_cuda:
            torch.cuda.synchronize()
        assert torch.equal(self.storage.gpu.cpu(), self.gpu)
        assert torch.equal(self.storage.host, self.host)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=10, deadline=None)
@given(slots=slots)
def test_blocks_go_to_the_host(way: str, slots: tuple[Sequence[int], Sequence[int]]) -> None:
    rig, (gpu, host) = Rig(way), slots
    rig.host[host] = rig.gpu[gpu]
    rig.copies.to_host(gpu, host, rig.fence)
    rig.check()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=10, deadline=None)
@given(slots=slots)
def test_blocks_go_to_the_gpu(way: str, slots: tuple[Sequence[int], Sequence[int]]) -> None:
    rig, (gpu, host) = Rig(way), slots
    rig.gpu[gpu] = rig.host[host]
    rig.copies.to_gpu(host, gpu, rig.fence)
    rig.check()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=10, deadline=None)
@given(slots=slots)
def test_layers_go_to_the_gpu_one_after_the_other(way: str, slots: tuple[Sequence[int], Sequence[int]]) -> None:
    rig, (gpu, host) = Rig(way), slots
    rig.gpu[gpu] = rig.host[host]
    arrived = list(rig.copies.layers_to_gpu(host, gpu, rig.fence))
    assert len(arrived) == SHAPE.layers
    arrived[-1].synchronize()
    rig.check()


@pytest.mark.parametrize("way", WAYS)
def test_what_arrives_from_elsewhere_goes_to_its_slots(way: str) -> None:
    rig = Rig(way)
    landing = rig.copies.landing()
    payloads = torch.randn(3, SHAPE.block_elements)
    for row, payload in zip(landing.rows([5, 0, 7]), payloads, strict=True):
        row[:] = payload.numpy().view(np.uint8)
    landing.deliver({0: 5, 1: 0, 2: 7}, rig.fence)
    rig.gpu[[5, 0, 7]] = payloads
    rig.check()


@pytest.mark.parametrize("way", WAYS)
def test_what_lies_in_other_memory_goes_to_its_slots(way: str) -> None:
    rig = Rig(way)
    payloads = torch.randn(2, SHAPE.block_elements)
    rig.copies.from_memory([each.numpy().view(np.uint8) for each in payloads], [8, 2], rig.fence)
    rig.gpu[[8, 2]] = payloads
    rig.check()
