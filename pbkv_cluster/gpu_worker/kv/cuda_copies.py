"""Copies of blocks between the GPU pool and pinned host memory, with CUDA. Unmeasured on a GPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pbkv_cluster.core.errors import ResourceExhausted, StartupError
from pbkv_cluster.gpu_worker.kv.layer_events import LayerEvent
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.store.arena.slots import Bytes


def pin_for(device: torch.device) -> Callable[[int, int], None]:
    """What makes host memory, given by address and size, fit for fast copies to a device. It raises ResourceExhausted.

    Raises:
        StartupError: CuPy is not installed.
    """
    if device.type != "cuda":
        return lambda address, size: None
    cuda = _cuda_runtime()

    def pin(address: int, size: int) -> None:
        try:
            with torch.cuda.device(device):
                cuda.hostRegister(address, size, 0)
        except cuda.CUDARuntimeError as error:
            raise ResourceExhausted(f"host memory cannot be pinned: {error}") from error

    return pin


def _cuda_runtime() -> Any:
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        raise StartupError(
            "a host tier on CUDA needs CuPy: install pbkv-cluster[gpu], or set engine.host_blocks to 0"
        ) from error
    return runtime


class CudaCopies:
    """A copy stream for each direction, next to the stream that computes. Unmeasured on a GPU."""

    batch = 32

    def __init__(self, storage: KvStorage) -> None:
        """Raises:
        StartupError: CuPy is not installed.
        """
        self.layers = storage.shape.layers
        self._cuda = _cuda_runtime()
        self._storage = storage
        self._bytes = storage.shape.block_bytes
        self._in: torch.cuda.Stream = torch.cuda.Stream(storage.device)  # type: ignore[no-untyped-call]
        self._out: torch.cuda.Stream = torch.cuda.Stream(storage.device)  # type: ignore[no-untyped-call]

    def fence(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._storage.device))
        return event

    def to_host(self, gpu_slots: Sequence[int], host_slots: Sequence[int], fence: torch.cuda.Event) -> None:
        self._copy(
            self._storage.gpu, gpu_slots, self._storage.host, host_slots, self._cuda.memcpyDeviceToHost, self._out, fence
        )

    def to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: torch.cuda.Event) -> None:
        self._copy(self._storage.host, host_slots, self._storage.gpu, gpu_slots, self._cuda.memcpyHostToDevice, self._in, fence)

    def layers_to_gpu(
        self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: torch.cuda.Event
    ) -> Iterator[LayerEvent]:
        size = self._bytes // self.layers
        with torch.cuda.device(self._storage.device):
            self._in.wait_event(fence)
        for layer in range(self.layers):
            with torch.cuda.device(self._storage.device):
                for source, target in zip(host_slots, gpu_slots, strict=True):
                    self._cuda.memcpyAsync(
                        self._storage.gpu.data_ptr() + target * self._bytes + layer * size,
                        self._storage.host.data_ptr() + source * self._bytes + layer * size,
                        size,
                        self._cuda.memcpyHostToDevice,
                        self._in.cuda_stream,
                    )
                event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(self._in)
            yield CudaLayer(event, self._storage.device)

    def from_memory(self, payloads: Sequence[Bytes], gpu_slots: Sequence[int], fence: torch.cuda.Event) -> None:
        with torch.cuda.device(self._storage.device):
            self._in.wait_event(fence)
            for payload, slot in zip(payloads, gpu_slots, strict=True):
                target = self._storage.gpu.data_ptr() + slot * self._bytes
                kind = self._cuda.memcpyHostToDevice
                self._cuda.memcpyAsync(target, payload.ctypes.data, self._bytes, kind, self._in.cuda_stream)
            self._in.synchronize()

    def landing(self) -> "CudaLanding":
        return CudaLanding(self._cuda, self._storage)

    def _copy(
        self,
        source: torch.Tensor,
        sources: Sequence[int],
        target: torch.Tensor,
        targets: Sequence[int],
        kind: int,
        stream: torch.cuda.Stream,
        fence: torch.cuda.Event,
    ) -> None:
        with torch.cuda.device(self._storage.device):
            stream.wait_event(fence)
            for first, second in zip(sources, targets, strict=True):
                self._cuda.memcpyAsync(
                    target.data_ptr() + second * self._bytes,
                    source.data_ptr() + first * self._bytes,
                    self._bytes,
                    kind,
                    stream.cuda_stream,
                )
            stream.synchronize()


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
