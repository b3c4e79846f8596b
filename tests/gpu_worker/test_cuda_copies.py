"""What `CudaCopies` asks of CUDA, and in which order, with streams and events that only take notes: no GPU is needed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest
import torch

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.gpu_worker.kv import cuda_copies
from pbkv_cluster.gpu_worker.kv.copy_methods import BatchedCopies, CopyMethod
from pbkv_cluster.gpu_worker.kv.cuda_copies import CudaCopies
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from tests.gpu_worker.test_copy_methods import move

SHAPE = KvShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)
LOADED, STORED = "stream 1", "stream 2"


class Notes:
    """Stands in for `torch.cuda`."""

    log: ClassVar[list[tuple[str, ...]]]
    streams: ClassVar[int]
    on = "the computing stream"
    milliseconds: ClassVar[Iterator[float]]


class Stream:
    def __init__(self, device: object = None) -> None:
        Notes.streams += 1
        self.name = f"stream {Notes.streams}"

    def wait_event(self, event: "Event") -> None:
        Notes.log.append(("wait", self.name, event.recorded))

    def synchronize(self) -> None:
        Notes.log.append(("synchronize", self.name))


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.recorded = ""

    def record(self, stream: Any) -> None:
        self.recorded = f"event {len(Notes.log)} of {stream.name}"
        Notes.log.append(("record", stream.name, self.recorded))

    def synchronize(self) -> None:
        Notes.log.append(("synchronize", self.recorded))

    def elapsed_time(self, end: "Event") -> float:
        return next(Notes.milliseconds)


class Computing:
    name = Notes.on

    @staticmethod
    def wait_event(event: Event) -> None:
        Notes.log.append(("wait", Notes.on, event.recorded))


class Runtime:
    cudaDevAttrCanUseHostPointerForRegisteredMem = 91  # noqa: N815
    mapped: ClassVar[int] = 1

    @staticmethod
    def deviceGetAttribute(attribute: int, device: int) -> int:  # noqa: N802
        assert attribute == 91
        return Runtime.mapped


def noted(name: str) -> Callable[[torch.device], CopyMethod]:
    """A method that notes each of its copies, and makes it."""

    def start(*copies: Any) -> None:
        Notes.log.append((name, Notes.on, "to the GPU" if copies[3] else "to the host"))
        move(*copies)

    return lambda device: BatchedCopies(device, start)


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    before, Notes.on = Notes.on, stream.name
    yield
    Notes.on = before


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> KvStorage:
    Notes.log, Notes.streams, Notes.milliseconds = [], 0, iter(())
    Runtime.mapped = 1
    for name, value in (
        ("Stream", Stream),
        ("Event", Event),
        ("device", lambda device: nullcontext()),
        ("stream", on),
        ("current_stream", lambda device: Computing),
        ("current_device", lambda: 0),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda_copies, "cuda_runtime", lambda: Runtime)
    monkeypatch.setattr(cuda_copies, "METHODS", {"kernel": noted("kernel"), "batch": noted("batch")})
    storage = KvStorage(SHAPE, 7, 5, torch.device("cpu"))
    for number, pool in enumerate((storage.gpu, storage.host)):
        pool.copy_(torch.arange(pool.numel()).view_as(pool) + number * 1_000_000)
    return storage


def test_a_load_comes_after_what_was_computed_and_is_there_when_it_returns(storage: KvStorage) -> None:
    copies = CudaCopies(storage, "batch")
    copies.to_gpu([4, 0], [1, 6], copies.fence())
    assert Notes.log == [
        ("record", "the computing stream", "event 0 of the computing stream"),
        ("wait", LOADED, "event 0 of the computing stream"),
        ("batch", LOADED, "to the GPU"),
        ("synchronize", LOADED),
    ]
    assert torch.equal(storage.gpu[[1, 6]], storage.host[[4, 0]])


def test_a_store_has_a_stream_of_its_own(storage: KvStorage) -> None:
    copies = CudaCopies(storage, "kernel")
    copies.to_host([1, 6], [4, 0], copies.fence())
    assert Notes.log[1:] == [
        ("wait", STORED, "event 0 of the computing stream"),
        ("kernel", STORED, "to the host"),
        ("synchronize", STORED),
    ]
    assert torch.equal(storage.host[[4, 0]], storage.gpu[[1, 6]])


def test_each_layer_has_an_event_that_the_computing_stream_waits_for(storage: KvStorage) -> None:
    copies = CudaCopies(storage, "batch")
    fence = copies.fence()
    Notes.log.clear()
    blocks = storage.gpu.view(7, SHAPE.layers, -1)
    events = []
    for layer, event in enumerate(copies.layers_to_gpu([4, 0], [1, 6], fence)):
        assert torch.equal(blocks[[1, 6], layer], storage.host.view(5, SHAPE.layers, -1)[[4, 0], layer])
        events.append(event)
        assert Notes.on == "the computing stream", "the thread's stream is its own again"
    copied = [("batch", LOADED, "to the GPU"), ("record", LOADED)]
    assert [note[:2] if note[0] == "record" else note for note in Notes.log] == [
        ("wait", LOADED, "event 0 of the computing stream"),
        *copied * SHAPE.layers,
    ]
    Notes.log.clear()
    events[1].wait()
    events[2].synchronize()
    assert Notes.log == [
        ("wait", "the computing stream", f"event 4 of {LOADED}"),
        ("synchronize", f"event 6 of {LOADED}"),
    ]


def test_nothing_is_started_for_no_blocks(storage: KvStorage) -> None:
    copies = CudaCopies(storage, "batch")
    fence = copies.fence()
    Notes.log.clear()
    copies.to_gpu([], [], fence)
    copies.to_host([], [], fence)
    assert not list(copies.layers_to_gpu([], [], fence))
    assert not Notes.log


@pytest.mark.parametrize(("kernel", "batch", "chosen"), [(1.0, 2.0, "kernel"), (2.0, 1.0, "batch")])
def test_auto_takes_the_way_that_was_faster(storage: KvStorage, kernel: float, batch: float, chosen: str) -> None:
    Notes.milliseconds = iter([9.0, kernel, 9.0, 9.0, batch, 9.0])  # the least of three trials counts
    copies = CudaCopies(storage, "auto")
    Notes.log.clear()
    copies.to_gpu([0], [1], copies.fence())
    assert (chosen, LOADED, "to the GPU") in Notes.log


def test_a_gpu_that_does_not_map_host_memory_has_no_kernel(storage: KvStorage) -> None:
    Runtime.mapped = 0
    Notes.milliseconds = iter([1.0] * 3)
    copies = CudaCopies(storage, "auto")
    copies.to_gpu([0], [1], copies.fence())
    assert not any(note[0] == "kernel" for note in Notes.log)
    with pytest.raises(StartupError, match=r"engine\.copies"):
        CudaCopies(storage, "kernel")


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy_a_gpu_has_no_host_tier_and_the_error_names_the_remedy() -> None:
    reason = cuda_copies.no_host_tier(torch.device("cuda"))
    assert reason.endswith(install_command("gpu"))
    assert cuda_copies.no_host_tier(torch.device("cpu")) == ""
    with pytest.raises(StartupError, match=r"^engine\.host_blocks: ") as refused:
        cuda_copies.pin_for(torch.device("cuda"))
    assert reason in str(refused.value)
