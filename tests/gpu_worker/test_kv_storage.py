import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import TorchTransferEngine

CPU = torch.device("cpu")
SHAPE = KvShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)
GPU_BLOCKS, HOST_BLOCKS = 7, 5


def numbered(storage: KvStorage) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills both pools with numbers that never repeat; copies of what they hold now."""
    for number, pool in enumerate((storage.gpu, storage.host)):
        pool.copy_(torch.arange(pool.numel()).view_as(pool) + number * 1_000_000)
    return storage.gpu.clone(), storage.host.clone()


def kv(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, SHAPE.kv_heads, SHAPE.head_dim, generator=torch.Generator().manual_seed(seed))


def demote(gpu: list[int], host: list[int]) -> Transfer:
    return Transfer(Tier.GPU, new_slots(gpu), Tier.HOST, new_slots(host))


def load(host: list[int], gpu: list[int]) -> Transfer:
    return Transfer(Tier.HOST, new_slots(host), Tier.GPU, new_slots(gpu))


@settings(deadline=None)
@given(slots=st.permutations(range(GPU_BLOCKS)), tokens=st.integers(1, GPU_BLOCKS * BLOCK_TOKENS), seed=st.integers(0, 99))
def test_what_is_written_to_a_layer_is_read_from_it(slots: list[int], tokens: int, seed: int) -> None:
    storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU)
    at = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))  # in any order
    rows = storage.token_rows(torch.tensor(slots)[at // BLOCK_TOKENS], at % BLOCK_TOKENS)
    keys, values = [kv(tokens, seed + layer) for layer in range(3)], [kv(tokens, seed + layer + 50) for layer in range(3)]
    for layer in range(3):
        storage.write(layer, rows, keys[layer][at], values[layer][at])
    used = torch.tensor(slots[: -(-tokens // BLOCK_TOKENS)])
    for layer in range(3):
        key, value = storage.read(layer, used)
        assert key.shape == value.shape == (len(used) * BLOCK_TOKENS, 2, 4)
        assert torch.equal(key[:tokens], keys[layer])
        assert torch.equal(value[:tokens], values[layer])
        assert not key[tokens:].any()
        assert not value[tokens:].any()


def test_a_block_is_one_run_of_memory_in_the_order_that_its_layout_names() -> None:
    assert SHAPE.layout() == "layers3.kv2.tokens16.heads2.dim4"
    storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU)
    for pool, blocks in ((storage.gpu, GPU_BLOCKS), (storage.host, HOST_BLOCKS)):
        assert pool.is_contiguous()
        assert pool.shape == (blocks, SHAPE.block_elements)
        assert pool.nbytes == blocks * SHAPE.block_bytes
    key, value = kv(1, 1), kv(1, 2)
    storage.write(1, storage.token_rows(torch.tensor([4]), torch.tensor([9])), key, value)
    block = storage.gpu[4].view(SHAPE.layers, 2, BLOCK_TOKENS, SHAPE.kv_heads, SHAPE.head_dim)
    assert torch.equal(block[1, 0, 9], key[0])
    assert torch.equal(block[1, 1, 9], value[0])
    assert storage.gpu.count_nonzero() == key.numel() + value.numel()


@settings(deadline=None)
@given(
    gpu=st.permutations(range(GPU_BLOCKS)),
    host=st.permutations(range(HOST_BLOCKS)),
    count=st.integers(1, HOST_BLOCKS),
    demoted=st.booleans(),
)
def test_transfers_copy_whole_blocks_and_touch_no_others(gpu: list[int], host: list[int], count: int, demoted: bool) -> None:
    storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU)
    engine = TorchTransferEngine(storage)
    on_gpu, on_host = numbered(storage)
    gpu, host = gpu[:count], host[:count]
    if demoted:
        assert engine.submit(demote(gpu, host))
        on_host[host] = on_gpu[gpu]
    else:
        assert engine.submit(load(host, gpu))
        on_gpu[gpu] = on_host[host]
    assert torch.equal(storage.gpu, on_gpu)
    assert torch.equal(storage.host, on_host)
    assert not engine.completed(), "what is done when it is submitted is not reported again"


def test_the_engine_expects_of_each_direction_what_it_has_measured_there() -> None:
    storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU)
    engine = TorchTransferEngine(storage)
    assert engine.seconds(Tier.GPU, Tier.HOST, 10) == 0.0
    engine.submit(demote([0, 1], [3, 4]))
    assert engine.seconds(Tier.GPU, Tier.HOST, 1) > 0.0
    assert engine.seconds(Tier.GPU, Tier.HOST, 10) == pytest.approx(10 * engine.seconds(Tier.GPU, Tier.HOST, 1))
    assert engine.seconds(Tier.HOST, Tier.GPU, 10) == 0.0


def test_the_host_tier_lies_in_the_memory_that_it_is_given() -> None:
    # A mapping longer than is needed, as a region of the arena is: it ends with a page.
    with mmap.mmap(-1, HOST_BLOCKS * SHAPE.block_bytes + mmap.PAGESIZE) as memory:
        storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU, memoryview(memory))
        on_gpu, _ = numbered(storage)
        TorchTransferEngine(storage).submit(demote([6], [2]))
        lies = memory[2 * SHAPE.block_bytes : 3 * SHAPE.block_bytes]
        assert lies == on_gpu[6].numpy().tobytes()
        memory[: SHAPE.block_bytes] = on_gpu[5].numpy().tobytes()  # and what another process writes there is seen
        TorchTransferEngine(storage).submit(load([0], [1]))
        assert torch.equal(storage.gpu[1], on_gpu[5])
        assert not any(memory[HOST_BLOCKS * SHAPE.block_bytes :])
        del storage


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_block_bytes_follow_the_type(dtype: torch.dtype) -> None:
    shape = KvShape(layers=2, kv_heads=3, head_dim=8, dtype=dtype)
    storage = KvStorage(shape, 4, 0, CPU)
    assert shape.block_bytes == 2 * 2 * 16 * 3 * 8 * dtype.itemsize
    assert storage.gpu.nbytes == 4 * shape.block_bytes
    assert storage.host.nbytes == 0
