"""The addresses that the ways to copy on a GPU compute, with the GPU's part done on the CPU: torch says what must come out."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.gpu_worker.kv import copy_methods
from pbkv_cluster.gpu_worker.kv.copy_methods import (
    KERNEL,
    BatchedCopies,
    CopyMethod,
    KernelCopies,
    Numbers,
    with_cupy,
    within_pieces,
)

CPU = torch.device("cpu")
BLOCKS, LAYERS, LAYER_BYTES = 9, 3, 48
PITCH = LAYERS * LAYER_BYTES

# What CUDA gives a kernel, and a grid whose threads run one after the other.
HARNESS = r"""
#include <cstdint>
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct Place { unsigned x; };
static Place blockIdx, threadIdx, gridDim, blockDim;
#define __global__
KERNEL
extern "C" void launch(unsigned grid, unsigned threads, const uint4* source, uint4* target, const long long* pairs,
                       long long blocks, long long pitch, long long first, long long words)
{
    gridDim.x = grid;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            copy_parts(source, target, pairs, blocks, pitch, first, words);
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """The kernel's own source, compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the kernel for the CPU")
    folder: Path = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(HARNESS.replace("KERNEL", KERNEL))
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", folder / "kernel.so", folder / "kernel.cpp"], check=True
    )
    launch = ctypes.CDLL(str(folder / "kernel.so")).launch
    launch.argtypes = [ctypes.c_uint] * 2 + [ctypes.c_void_p] * 3 + [ctypes.c_longlong] * 4
    return lambda *arguments: launch(3, 5, *arguments)  # so that threads have several words, and blocks several threads


def move(sources: Numbers, targets: Numbers, sizes: Numbers, to_gpu: bool) -> None:
    """What the driver does with a batch of copies."""
    for source, target, size in zip(sources.tolist(), targets.tolist(), sizes.tolist(), strict=True):
        ctypes.memmove(target, source, size)


def pool(seed: int) -> torch.Tensor:
    """Blocks with an address that a kernel can use."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randint(0, 256, (BLOCKS * PITCH + 16,), dtype=torch.uint8, generator=generator)
    start = -memory.data_ptr() % 16
    return memory[start : start + BLOCKS * PITCH].view(BLOCKS, PITCH)


def expect_copies(method: CopyMethod, sources: list[int], targets: list[int], to_gpu: bool) -> None:
    pairs = np.array([sources, targets], np.int64).T
    for layer in (None, *range(LAYERS)):
        source, target = pool(1), pool(2)
        part = slice(None) if layer is None else slice(layer * LAYER_BYTES, (layer + 1) * LAYER_BYTES)
        expected = target.clone()
        expected[targets, part] = source[sources, part]
        copy = method(source.data_ptr(), target.data_ptr(), pairs, PITCH, to_gpu)
        if layer is None:
            copy(0, PITCH)
        else:
            copy(layer * LAYER_BYTES, LAYER_BYTES)
        assert torch.equal(target, expected)


slots = st.integers(1, BLOCKS).flatmap(
    lambda count: st.tuples(*[st.permutations(range(BLOCKS)).map(lambda order: order[:count])] * 2)
)


@settings(max_examples=30, deadline=None)
@given(slots=slots)
def test_the_kernel_copies_what_it_is_told_to(kernel: Callable[..., None], slots: tuple[list[int], list[int]]) -> None:
    expect_copies(KernelCopies(CPU, kernel), *slots, to_gpu=True)


@settings(max_examples=30, deadline=None)
@given(slots=slots, to_gpu=st.booleans())
def test_a_batch_copies_what_it_is_told_to(slots: tuple[list[int], list[int]], to_gpu: bool) -> None:
    expect_copies(BatchedCopies(CPU, move), *slots, to_gpu=to_gpu)


def test_the_kernel_refuses_what_is_not_made_of_its_words(kernel: Callable[..., None]) -> None:
    source = pool(1)
    copy = KernelCopies(CPU, kernel)(source.data_ptr(), source.data_ptr(), np.array([[0, 1]]), PITCH, True)
    with pytest.raises(AssertionError, match="16 bytes"):
        copy(8, 16)


@settings(max_examples=50, deadline=None)
@given(
    copies=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300)), min_size=1, max_size=8),
    to_gpu=st.booleans(),
)
def test_no_copy_is_in_two_pieces_of_pinned_memory(copies: list[tuple[int, int]], to_gpu: bool) -> None:
    piece = 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy_methods, "PIECE_BYTES", piece)
        host = np.array([start for start, _ in copies])
        gpu = np.arange(len(copies)) * 10_000
        sizes = np.array([size for _, size in copies])
        cut = within_pieces(host, gpu, sizes)
    assert all(start // piece == (start + size - 1) // piece for start, _, size in zip(*cut, strict=True))
    copied = sorted((int(h) + n, int(g) + n) for h, g, size in zip(*cut, strict=True) for n in range(size))
    assert copied == sorted((h + n, int(g) + n) for (h, size), g in zip(copies, gpu, strict=True) for n in range(size))


def test_a_block_that_lies_in_two_pieces_is_copied_whole() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy_methods, "PIECE_BYTES", 64)
        expect_copies(BatchedCopies(CPU, move), [3, 0, 8], [1, 2, 5], to_gpu=True)
        expect_copies(BatchedCopies(CPU, move), [3, 0, 8], [1, 2, 5], to_gpu=False)


def test_the_attributes_of_a_batch_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the driver: looks at what it is given where it would."""
    given = dict[str, Any]()

    def call(*arguments: Any) -> int:
        targets, sources, sizes, count, attributes, applies_from, kinds, stream = arguments
        given["sizes"] = list((ctypes.c_size_t * count).from_address(sizes))
        given["first"] = (
            (ctypes.c_size_t * count).from_address(sources)[0],
            (ctypes.c_size_t * count).from_address(targets)[0],
        )
        given["attributes"] = list((ctypes.c_int32 * 6).from_address(attributes))
        given["rest"] = (ctypes.c_size_t.from_address(applies_from).value, kinds, stream)
        return 0

    class Library:
        cuMemcpyBatchAsync_v2 = staticmethod(call)  # noqa: N815

    class Stream:
        cuda_stream = 77

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream)
    monkeypatch.setattr(call, "argtypes", None, raising=False)
    BatchedCopies(CPU)(1 << 30, 1 << 40, np.array([[2, 5], [0, 1]]), PITCH, True)(LAYER_BYTES, LAYER_BYTES)
    assert given["sizes"] == [LAYER_BYTES, LAYER_BYTES]
    assert given["first"] == ((1 << 30) + 2 * PITCH + LAYER_BYTES, (1 << 40) + 5 * PITCH + LAYER_BYTES)
    assert given["attributes"] == [1, 0, 0, 0, 0, 1], "in the stream's order, no hints, overlap with computing"
    assert given["rest"] == (0, 1, 77)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_the_kernel_is_started_on_the_stream_of_its_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, int]] = []

    @contextmanager
    def external_stream(address: int, device: int) -> Iterator[None]:
        assert isinstance(device, int), "CuPy does not take a device without an index"
        started.append((address, device))
        yield

    def current_stream(device: torch.device) -> SimpleNamespace:
        index = 0 if device.index is None else device.index
        return SimpleNamespace(cuda_stream=70 + index, device_index=index)

    cuda = SimpleNamespace(ExternalStream=external_stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawKernel=lambda *source: lambda *launch: None, cuda=cuda))
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    device = torch.device(name)
    with_cupy(device)(0, 0, 0, 1, 1, 0, 1)
    index = device.index or 0
    assert started == [(70 + index, index)]
