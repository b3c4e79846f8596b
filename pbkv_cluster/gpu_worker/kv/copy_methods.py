"""Ways to copy the same part of many blocks between two pools, one of them on a GPU. Unmeasured on a GPU.

A method is called with the pools' addresses and the pairs of slots, and returns what starts the copy of a part of all blocks on
the current stream: once for whole blocks, or once for each layer. Host memory must be pinned by `pin_for`, in pieces.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pbkv_cluster.store.arena.page_touch import PIECE_BYTES

Numbers: TypeAlias = "npt.NDArray[np.int64]"
CopyPart: TypeAlias = Callable[[int, int], None]
"""Starts the copy of some bytes of each block, given where in the block they begin and how many they are."""


class CopyMethod(Protocol):
    """Copies blocks from one pool to another."""

    def __call__(self, source: int, target: int, pairs: Numbers, pitch: int, to_gpu: bool) -> CopyPart:
        """Args:
        source: address of the pool that is read, and `target` of the other.
        pairs: [blocks, 2], the slot of each block in the source and in the target.
        pitch: bytes of a slot.
        to_gpu: whether the source is the one in host memory.
        """
        ...


# Thread t of all T copies words t, t + T, ... of the parts of all blocks, laid end to end. Lengths are in words of 16 bytes.
KERNEL = r"""
extern "C" __global__ void copy_parts(const uint4* source, uint4* target, const long long* pairs, long long blocks,
                                      long long pitch, long long first, long long words)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < blocks * words; at += step) {
        const long long block = at / words;
        const long long word = first + at % words;
        target[pairs[2 * block + 1] * pitch + word] = source[pairs[2 * block] * pitch + word];
    }
}
"""
_WORD = 16
# Few enough that the other processors of the GPU go on computing, and enough loads in flight for the bus.
_GRID, _THREADS = 32, 512


class KernelCopies:
    """One kernel reads or writes mapped host memory from the GPU."""

    def __init__(self, device: torch.device, launch: Callable[..., None] | None = None) -> None:
        """Args:
        device: the GPU.
        launch: starts the kernel, given its arguments; by default on the current stream, with CuPy.
        """
        self._device = device
        self._launch = launch or with_cupy(device)

    def __call__(self, source: int, target: int, pairs: Numbers, pitch: int, to_gpu: bool) -> CopyPart:
        slots = torch.from_numpy(np.ascontiguousarray(pairs))
        if self._device.type == "cuda":
            slots = slots.pin_memory().to(self._device, non_blocking=True)

        def copy(first: int, size: int) -> None:
            assert not (source | target | pitch | first | size) % _WORD, "the kernel copies words of 16 bytes"
            self._launch(source, target, slots.data_ptr(), len(pairs), pitch // _WORD, first // _WORD, size // _WORD)

        return copy


def with_cupy(device: torch.device) -> Callable[..., None]:
    """What starts the kernel on the current stream of a GPU, given its arguments."""
    import cupy

    kernel = cupy.RawKernel(KERNEL, "copy_parts")

    def launch(*arguments: int) -> None:
        stream = torch.cuda.current_stream(device)
        # Not the device's own index: "cuda", which is what `auto` stands for, has none.
        with cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index):
            kernel((_GRID,), (_THREADS,), tuple(np.int64(each) for each in arguments))

    return launch


class BatchedCopies:
    """One call of the driver starts all copies; each is made by a copy engine of the GPU."""

    def __init__(self, device: torch.device, start: Callable[[Numbers, Numbers, Numbers, bool], None] | None = None) -> None:
        """Args:
        device: the GPU.
        start: starts copies, given where each begins, where it goes, its bytes and whether that is to the GPU; by default on
            the current stream, with CUDA's driver, or one by one with CuPy if that is older than CUDA 13.
        """
        self._device = device
        self._start = start or self._with_driver()

    def __call__(self, source: int, target: int, pairs: Numbers, pitch: int, to_gpu: bool) -> CopyPart:
        sources, targets = source + pairs[:, 0] * pitch, target + pairs[:, 1] * pitch

        def copy(first: int, size: int) -> None:
            sizes = np.full(len(pairs), size, np.int64)
            host, gpu = (sources, targets) if to_gpu else (targets, sources)
            host, gpu, sizes = within_pieces(host + first, gpu + first, sizes)
            self._start(*((host, gpu) if to_gpu else (gpu, host)), sizes, to_gpu)

        return copy

    def _with_driver(self) -> Callable[[Numbers, Numbers, Numbers, bool], None]:
        call = getattr(ctypes.CDLL("libcuda.so.1"), "cuMemcpyBatchAsync_v2", None)
        if call is None:
            return self._one_by_one
        call.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2 + [ctypes.c_size_t, ctypes.c_void_p]
        # CUmemcpyAttributes: source accessed in the stream's order; two location hints, ignored here; overlap with computing.
        attributes = np.array([1, 0, 0, 0, 0, 1], np.int32)
        applies_from = np.zeros(1, np.uint64)  # the first copy

        def start(sources: Numbers, targets: Numbers, sizes: Numbers, to_gpu: bool) -> None:
            lists = [each.ctypes.data for each in (targets, sources, sizes)]
            rules = [attributes.ctypes.data, applies_from.ctypes.data, 1]
            error = call(*lists, len(sizes), *rules, torch.cuda.current_stream(self._device).cuda_stream)
            if error:
                raise RuntimeError(f"cuMemcpyBatchAsync failed with error {error} of CUDA's driver")

        return start

    def _one_by_one(self, sources: Numbers, targets: Numbers, sizes: Numbers, to_gpu: bool) -> None:
        from cupy.cuda import runtime

        kind = runtime.memcpyHostToDevice if to_gpu else runtime.memcpyDeviceToHost
        stream = torch.cuda.current_stream(self._device).cuda_stream
        for source, target, size in zip(sources.tolist(), targets.tolist(), sizes.tolist(), strict=True):
            runtime.memcpyAsync(target, source, size, kind, stream)


def within_pieces(host: Numbers, gpu: Numbers, sizes: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Cuts copies in two where pieces of host memory meet that have been pinned apart: CUDA refuses a copy that is in both.

    Args:
        host: where each copy begins in host memory.
        gpu: where it begins on the GPU.
        sizes: bytes of each.
    """
    parts = []
    while len(host):
        now = np.minimum(sizes, PIECE_BYTES - host % PIECE_BYTES)
        parts.append((host, gpu, now))
        more = sizes > now
        host, gpu, sizes = (host + now)[more], (gpu + now)[more], (sizes - now)[more]
    columns = zip(*parts, strict=True) if parts else ((host,), (gpu,), (sizes,))
    host, gpu, sizes = (np.concatenate(column) for column in columns)
    return host, gpu, sizes


METHODS: dict[str, Callable[[torch.device], Any]] = {"kernel": KernelCopies, "batch": BatchedCopies}
