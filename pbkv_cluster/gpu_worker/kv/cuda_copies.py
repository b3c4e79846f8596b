"""Copies of blocks between the GPU pool and pinned host memory, with CUDA. Unmeasured on a GPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from pbkv_cluster.core.errors import ResourceExhausted, StartupError
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.gpu_worker.kv.copy_methods import METHODS, CopyMethod, CopyPart
from pbkv_cluster.gpu_worker.kv.layer_events import LayerEvent
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.store.arena.slots import Bytes

TRIAL_BLOCKS = 32  # that `auto` copies to choose a method
_TRIALS = 3


def pin_for(device: torch.device) -> Callable[[int, int], None]:
    """What makes host memory, given by address and size, fit for fast copies to a device. It raises ResourceExhausted.

    Raises:
        StartupError: CuPy is not installed.
    """
    if device.type != "cuda":
        return lambda address, size: None
    cuda = cuda_runtime()
    portable_and_mapped = 3

    def pin(address: int, size: int) -> None:
        try:
            with torch.cuda.device(device):
                cuda.hostRegister(address, size, portable_and_mapped)
        except cuda.CUDARuntimeError as error:
            raise ResourceExhausted(f"host memory cannot be pinned: {error}") from error

    return pin


def cuda_runtime() -> Any:
    """CuPy's binding of CUDA's runtime.

    Raises:
        StartupError: CuPy is not installed.
    """
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        raise StartupError(f"engine.host_blocks: {_needs_cupy()}; with -1 or 0 workers serve without") from error
    return runtime


def no_host_tier(device: torch.device) -> str:
    """Why a device can have no host tier, and what to do; empty: it can."""
    return _needs_cupy() if device.type == "cuda" and find_spec("cupy") is None else ""


def _needs_cupy() -> str:
    return f"a host tier on CUDA needs CuPy, which is not installed: {install_command('gpu')}"


class CudaCopies:
    """A copy stream for each direction, next to the stream that computes. Unmeasured on a GPU."""

    batch = 32

    def __init__(self, storage: KvStorage, method: str = "auto") -> None:
        """Args:
        storage: for `auto`, its first `TRIAL_BLOCKS` blocks in host memory must be pinned, and those of the GPU free.
        method: one of `METHODS`; auto: the one that copies these blocks fastest, layer by layer.

        Raises:
            StartupError: CuPy is not installed, or the GPU cannot use the method.
        """
        self.layers = storage.shape.layers
        self._cuda = cuda_runtime()
        self._storage = storage
        self._device = storage.device
        self._bytes = storage.shape.block_bytes
        self._in: torch.cuda.Stream = torch.cuda.Stream(storage.device)  # type: ignore[no-untyped-call]
        self._out: torch.cuda.Stream = torch.cuda.Stream(storage.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(storage.device):
            self._method = self._fastest() if method == "auto" else self._make(method)

    def fence(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def to_host(self, gpu_slots: Sequence[int], host_slots: Sequence[int], fence: torch.cuda.Event) -> None:
        if gpu_slots:
            with self._on(self._out, fence):
                self._plan(gpu_slots, host_slots, to_gpu=False)(0, self._bytes)
                self._out.synchronize()

    def to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: torch.cuda.Event) -> None:
        if gpu_slots:
            with self._on(self._in, fence):
                self._plan(host_slots, gpu_slots, to_gpu=True)(0, self._bytes)
                self._in.synchronize()

    def layers_to_gpu(
        self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: torch.cuda.Event
    ) -> Iterator[LayerEvent]:
        if not gpu_slots:
            return
        size = self._bytes // self.layers
        with self._on(self._in, fence):
            copy = self._plan(host_slots, gpu_slots, to_gpu=True)
        for layer in range(self.layers):
            with self._on(self._in):
                copy(layer * size, size)
                event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(self._in)
            yield CudaLayer(event, self._device)

    def from_memory(self, payloads: Sequence[Bytes], gpu_slots: Sequence[int], fence: torch.cuda.Event) -> None:
        with self._on(self._in, fence):
            for payload, slot in zip(payloads, gpu_slots, strict=True):
                target = self._storage.gpu.data_ptr() + slot * self._bytes
                kind = self._cuda.memcpyHostToDevice
                self._cuda.memcpyAsync(target, payload.ctypes.data, self._bytes, kind, self._in.cuda_stream)
            self._in.synchronize()

    def landing(self) -> "CudaLanding":
        return CudaLanding(self._cuda, self._storage)

    @contextmanager
    def _on(self, stream: torch.cuda.Stream, fence: torch.cuda.Event | None = None) -> Iterator[None]:
        """What is started comes after what `fence` stands for, on a stream."""
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            if fence is not None:
                stream.wait_event(fence)
            yield

    def _plan(self, sources: Sequence[int], targets: Sequence[int], to_gpu: bool) -> CopyPart:
        pairs = np.array([sources, targets], np.int64).T
        host, gpu = self._storage.host.data_ptr(), self._storage.gpu.data_ptr()
        source, target = (host, gpu) if to_gpu else (gpu, host)
        return self._method(source, target, pairs, self._bytes, to_gpu)

    def _make(self, name: str) -> CopyMethod:
        if name == "kernel" and not self._maps_host_memory():
            raise StartupError("engine.copies: this GPU does not address pinned host memory as the host does; use batch")
        method: CopyMethod = METHODS[name](self._device)
        return method

    def _maps_host_memory(self) -> bool:
        attribute = self._cuda.cudaDevAttrCanUseHostPointerForRegisteredMem
        return bool(self._cuda.deviceGetAttribute(attribute, torch.cuda.current_device()))

    def _fastest(self) -> CopyMethod:
        names = [name for name in METHODS if name != "kernel" or self._maps_host_memory()]
        slots = range(min(TRIAL_BLOCKS, len(self._storage.host), len(self._storage.gpu)))
        taken: dict[float, CopyMethod] = {}
        for name in names:
            self._method = self._make(name)
            taken[min(self._trial(slots) for _ in range(_TRIALS))] = self._method
        return taken[min(taken)]

    def _trial(self, slots: Sequence[int]) -> float:
        """Milliseconds that some blocks take."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(self._in)
        for layer in self.layers_to_gpu(slots, slots, self.fence()):
            layer.wait()
        end.record(self._in)
        end.synchronize()
        return float(start.elapsed_time(end))


@dataclass(frozen=True, slots=True)
class CudaLayer:
    """The copy of one layer. Its event has been recorded."""

    event: torch.cuda.Event
    device: torch.device

    def wait(self) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.event)

    def synchronize(self) -> None:
        self.event.synchronize()


class CudaLanding:
    """Pinned memory, and a copy stream. Unmeasured on a GPU."""

    blocks = 32

    def __init__(self, cuda: Any, storage: KvStorage) -> None:
        self._cuda = cuda
        self._storage = storage
        self._bytes = storage.shape.block_bytes
        self._pinned = torch.empty(self.blocks, self._bytes, dtype=torch.uint8, pin_memory=True)
        self._stream: torch.cuda.Stream = torch.cuda.Stream(storage.device)  # type: ignore[no-untyped-call]

    def rows(self, gpu_slots: Sequence[int]) -> Sequence[Bytes]:
        return list(self._pinned.numpy()[: len(gpu_slots)])

    def deliver(self, arrived: Mapping[int, int], fence: torch.cuda.Event) -> None:
        with torch.cuda.device(self._storage.device):
            self._stream.wait_event(fence)
            for row, slot in arrived.items():
                self._cuda.memcpyAsync(
                    self._storage.gpu.data_ptr() + slot * self._bytes,
                    self._pinned.data_ptr() + row * self._bytes,
                    self._bytes,
                    self._cuda.memcpyHostToDevice,
                    self._stream.cuda_stream,
                )
            self._stream.synchronize()
