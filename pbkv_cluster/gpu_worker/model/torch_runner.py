"""Runs batches through a model of `transformers` on one device."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pbkv_cluster.cache.tiers.transfer import LayerArrival, NullTransferEngine, TransferEngine
from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.errors import ResourceExhausted, StartupError
from pbkv_cluster.core.tokens import TOKEN_BYTES, as_array, blocks_for
from pbkv_cluster.gpu_worker.attention import Span, choose
from pbkv_cluster.gpu_worker.attention.arriving import arriving
from pbkv_cluster.gpu_worker.engine.logprobs import next_logprobs
from pbkv_cluster.gpu_worker.engine.sampler import sample
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies, CpuCopies
from pbkv_cluster.gpu_worker.kv.cuda_copies import TRIAL_BLOCKS, CudaCopies, no_host_tier, pin_for
from pbkv_cluster.gpu_worker.kv.disk_copies import DiskCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.lanes.copy_meter import CopyMeter
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from pbkv_cluster.gpu_worker.model.forward import forward
from pbkv_cluster.gpu_worker.model.hidden_state import HiddenProjection, captured
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.machine import available_memory
from pbkv_cluster.store.disk.disk_slots import DiskSlots, open_disk
from pbkv_cluster.store.disk.write_behind import WriteBehind

_GPU_BLOCKS_MIN = 8
_CPU_CONTEXTS = 64  # of full length, that the pool of a CPU has room for


def pick_device(name: str) -> torch.device:
    """The device that `engine.device` names.

    Raises:
        StartupError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise StartupError(f"engine.device: {name!r} cannot be used: {error}") from error
    return device


class TorchRunner:
    """A model and its block pools on one device."""

    def __init__(self, model: LoadedModel, config: EngineConfig, device: torch.device) -> None:
        """`allocate` must be called before the first batch.

        Raises:
            StartupError: the pool would be too small to be of use.
            InvalidArgument: an unknown attention back end.
        """
        self.model = model
        self._attention = choose(config.attention, device, model.shape.dtype)
        self.gpu_blocks = config.gpu_blocks or _blocks_that_fit(model, config, device)
        # Where the size is left to the machine, a GPU that can have no host tier serves without.
        self.no_host_tier = no_host_tier(device) if config.host_blocks < 0 else ""
        self.host_blocks = config.host_blocks if config.host_blocks >= 0 else 0 if self.no_host_tier else 2 * self.gpu_blocks
        if self.gpu_blocks < _GPU_BLOCKS_MIN:
            raise StartupError(
                f"engine.gpu_blocks: {self.gpu_blocks} blocks are too few, at least {_GPU_BLOCKS_MIN} are needed"
            )
        self._device = device
        self._verify_share = config.verify_share
        self._by_layer = config.load_by_layer
        self._copies = config.copies
        self._disk_bytes = config.disk_bytes
        self.disk_blocks = 0  # set by `allocate`
        self.host: HostRegion | None = None  # set by `allocate`, if there is a host tier
        self.disk: DiskCopies | None = None  # set by `allocate`, if there is a disk tier
        self._transfers: ThreadedTransferEngine | None = None
        self.vocabulary = model.vocabulary
        self.max_context = model.max_context
        self.eos = model.eos
        self._project: HiddenProjection | None = None
        if config.hidden_dims and model.hidden:
            self._project = HiddenProjection(model.hidden, config.hidden_dims, device)

    @property
    def copies(self) -> CopyMeter | None:
        """What has been copied between the tiers; None: there is no host tier."""
        return None if self._transfers is None else self._transfers.meter

    @property
    def host_layout(self) -> RegionLayout:
        """Of the host tier's region."""
        return RegionLayout(self.host_blocks, self.model.shape.block_bytes)

    @property
    def model_digest(self) -> bytes:
        """Of what the blocks of all namespaces of this model share."""
        return replace(self.model.namespace(), salt="", is_long=False).digest()

    def allocate(
        self,
        memory: memoryview | None = None,
        huge_pages: bool = False,
        disk_path: Path | None = None,
        others: OtherWorkers | None = None,
    ) -> None:
        """Allocates the pools, and finds the blocks again that an earlier process has left in the host tier and on the disk.

        Args:
            memory: for the host tier, as long as `host_layout` says; by default the process's own.
            huge_pages: ask for transparent huge pages for the host tier.
            disk_path: the file of the disk tier; None: there is none. There is none without a host tier either.
            others: workers whose blocks can be fetched; without a host tier, none are.

        Raises:
            StartupError: the pools do not fit.
        """
        model = self.model_digest
        try:
            if self.host_blocks:
                self.host = HostRegion(self.host_layout, model, time.time, memory, huge_pages, pin_for(self._device))
            payloads = self.host.slots.payloads if self.host is not None else None
            self.storage = KvStorage(self.model.shape, self.gpu_blocks, self.host_blocks, self._device, payloads)
        except (RuntimeError, MemoryError, ResourceExhausted) as error:
            raise StartupError(f"engine.gpu_blocks: {self.gpu_blocks} blocks do not fit in memory: {error}") from error
        self.transfer_engine: TransferEngine = NullTransferEngine()
        if self.host is not None:
            copies = self._block_copies(self.host)
            if disk_path is not None:
                self.disk = DiskCopies(copies, self.host, WriteBehind(self._open_disk(disk_path, model)))
            self.transfer_engine = self._transfers = ThreadedTransferEngine(
                copies, self.host, self._verify_share, self.disk, others, self._by_layer
            )

    def _block_copies(self, host: HostRegion) -> BlockCopies:
        if self._device.type != "cuda":
            return CpuCopies(self.storage)
        for slot in range(min(TRIAL_BLOCKS, self.host_blocks)):
            host.ensure(slot)
        return CudaCopies(self.storage, self._copies)

    def _open_disk(self, path: Path, model: bytes) -> DiskSlots:
        size = self.model.shape.block_bytes
        self.disk_blocks = RegionLayout(0, size).slots_in(self._disk_bytes)
        if not self.disk_blocks:
            raise StartupError(f"engine.disk_bytes: {self._disk_bytes} bytes have no room for a block of {size}")
        return open_disk(path, RegionLayout(self.disk_blocks, size), model)

    def close(self) -> None:
        """Ends the threads that copy. The pools stay."""
        if self._transfers is not None:
            self._transfers.close()
        if self.host is not None:
            self.host.stop()

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """See `Runner.run`."""
        logits = self.logits(chunks)
        final = [chunk.sequence for chunk in chunks if chunk.final]
        if not final:
            return []
        sampling = [sequence.request.sampling for sequence in final]
        tokens = sample(logits, sampling, [sequence.generated for sequence in final])
        if any(each.top_logprobs is not None for each in sampling):
            forced = [sequence.forced_token for sequence in final]
            taken = [token if other is None else other for token, other in zip(tokens, forced, strict=True)]
            found = next_logprobs(logits, taken, [each.top_logprobs for each in sampling])
            for sequence, logprobs in zip(final, found, strict=True):
                sequence.logprobs = logprobs
        return tokens

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Runs the chunks. Returns the logits at the last position of each final chunk, [final chunks, vocabulary].

        Sets `hidden` of the sequences whose prompts end in the batch.
        """
        ids = np.concatenate([_ids(chunk) for chunk in chunks])
        positions = np.concatenate([np.arange(chunk.start, chunk.start + chunk.count) for chunk in chunks])
        lengths = np.repeat([chunk.sequence.total for chunk in chunks], [chunk.count for chunk in chunks])
        ends = np.cumsum([chunk.count for chunk in chunks]) - 1
        last = [int(end) for end, chunk in zip(ends, chunks, strict=True) if chunk.final]
        # Without a final chunk one row is computed all the same: a model's head needs at least one.
        rows = last or [int(ends[-1])]
        paged = arriving(self._attention(self.storage, [_span(chunk) for chunk in chunks]), _arrivals(chunks))
        project = self._project if any(_ends_prompt(chunk) for chunk in chunks) else None
        with captured(self.model.module) if project else nullcontext(list[torch.Tensor]()) as states:
            logits = forward(self.model.module, paged, ids, positions, lengths, rows, self.storage.device, self.model.rotary)
        if project:
            at = {
                chunk.sequence: _prompt_end(chunk, int(end))
                for chunk, end in zip(chunks, ends, strict=True)
                if _ends_prompt(chunk)
            }
            for sequence, hidden in zip(at, project(states[0][0, list(at.values())]), strict=True):
                sequence.hidden = hidden
        return logits[: len(last)]


def _ids(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return as_array(bytes(chunk.sequence.tokens[chunk.start * TOKEN_BYTES : (chunk.start + chunk.count) * TOKEN_BYTES]))


def _ends_prompt(chunk: Chunk) -> bool:
    """Whether the chunk holds the prompt's last token, for the first time."""
    return chunk.ends_prompt and not chunk.sequence.hidden


def _prompt_end(chunk: Chunk, end: int) -> int:
    """Row of the prompt's last token in a batch where the chunk ends at row `end`."""
    return end - (chunk.start + chunk.count - chunk.sequence.prompt_tokens)


def _arrivals(chunks: Sequence[Chunk]) -> list[LayerArrival]:
    """Loads of which the batch must wait for each layer."""
    handles = [chunk.sequence.handle for chunk in chunks]
    return list(dict.fromkeys(arrival for handle in handles if handle is not None for arrival in handle.arrivals or ()))


def _span(chunk: Chunk) -> Span:
    handle = chunk.sequence.handle
    assert handle is not None
    return Span(chunk.start, chunk.count, handle.table.slots[: blocks_for(chunk.start + chunk.count)])


def _blocks_that_fit(model: LoadedModel, config: EngineConfig, device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free - (1 - config.gpu_memory_share) * total) // model.shape.block_bytes
    free = available_memory()
    # A CPU shares its memory with everything else, so the pool gets no more than its contexts can use.
    useful = _CPU_CONTEXTS * blocks_for(model.max_context)
    return min(int(free * config.gpu_memory_share / 4) // model.shape.block_bytes, useful)
