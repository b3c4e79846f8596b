import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage

CPU = torch.device("cpu")
SHAPE = KvShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)
GPU_BLOCKS, HOST_BLOCKS = 7, 5


def kv(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, SHAPE.kv_heads, SHAPE.head_dim, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_block_bytes_follow_the_type(dtype: torch.dtype) -> None:
    shape = KvShape(layers=2, kv_heads=3, head_dim=8, dtype=dtype)
    storage = KvStorage(shape, 4, 0, CPU)
    assert shape.block_bytes == 2 * 2 * 16 * 3 * 8 * dtype.itemsize
    assert storage.gpu.nbytes == 4 * shape.block_bytes
    assert storage.host.nbytes == 0
