"""The contract of a runner, which executes the engine's batches: on a device, or in simulated time."""

from collections.abc import Sequence
from typing import Protocol

from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.gpu_worker.engine.sequence import Chunk


class Runner(Protocol):
    """Executes one batch at a time over a pool of blocks."""

    gpu_blocks: int
    host_blocks: int
    disk_blocks: int
    vocabulary: int  # token ids are below this
    max_context: int  # most tokens of prompt and output together that the model supports
    eos: frozenset[int]

    @property
    def transfer_engine(self) -> TransferEngine:
        """Copies blocks between the runner's pools."""
        ...

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """Runs the chunks through the model, and stores the KV of their tokens in the slots of their block tables.

        Where blocks are still being loaded into these slots, each layer waits for `CacheHandle.arrivals`. The caller finds out
        whether these blocks have turned out damaged.

        A runner with a real model may set `hidden` of sequences whose prompts end in this batch. It sets `logprobs` of those
        that ask for them.

        Returns:
            The next token of each final chunk, in order, chosen by its sampling parameters; `forced_output` is not looked at.
        """
        ...
