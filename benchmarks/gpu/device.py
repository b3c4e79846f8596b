"""A GPU, or the CPU in its place."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies, CpuCopies
from pbkv_cluster.gpu_worker.kv.copy_methods import METHODS
from pbkv_cluster.gpu_worker.kv.cuda_copies import CudaCopies
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is run."""

    shape: KvShape
    heads: int  # of queries
    inner: int  # values of a hidden state inside a layer's MLP
    gpu_blocks: int
    tokens: int  # that are loaded
    new_tokens: int  # that a step computes while they are
    sequences: int  # that decode together
    context: int  # tokens of each of these
    rounds: int


FULL = Sizes(KvShape(32, 8, 128, torch.bfloat16), 32, 14336, 3072, 4096, 1024, 16, 2048, 15)
SMALL = Sizes(KvShape(4, 2, 16, torch.bfloat16), 4, 96, 96, 256, 64, 4, 128, 2)


class Device:
    """Where pools and layers are, and how time is taken there."""

    def __init__(self, name: str, methods: tuple[str, ...] = tuple(METHODS)) -> None:
        """Args:
        name: cuda or cpu.
        methods: ways to copy blocks on a GPU, see `CudaCopies`.

        Raises:
            SystemExit: there is no such device.
        """
        if name == "cuda" and not torch.cuda.is_available():
            raise SystemExit("gpu: torch finds no GPU here; --device cpu runs the same code on the CPU")
        self.torch = torch.device(name)
        self.is_cuda = name == "cuda"
        self.methods = methods if self.is_cuda else ("twin",)

    def copies(self, storage: KvStorage, method: str) -> BlockCopies:
        """What copies between the pools."""
        return CudaCopies(storage, method) if self.is_cuda else CpuCopies(storage)

    def synchronize(self) -> None:
        """Returns when all that has been started is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def seconds(self, run: Callable[[], object]) -> float:
        """How long a call takes, until all that it has started is done."""
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start
