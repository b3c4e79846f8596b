"""The contract of a runner, which executes batches for the engine: on a device, or in simulated time."""

from collections.abc import Sequence
from typing import Protocol

from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.gpu_worker.engine.sequence import Chunk


class Runner(Protocol):
    """Executes one batch at a time over a pool of blocks."""

    gpu_blocks: int
    host_blocks: int
    vocabulary: int  # token ids are below this
    max_context: int  # tokens of prompt and output that the model was made for
    eos: frozenset[int]

    @property
    def transfer_engine(self) -> TransferEngine:
        """Copies blocks between the runner's pools."""
        ...

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """Computes the KV of the chunks' tokens into the slots of their cache handles, which are ready.

        A runner of a real model may set `hidden` of the sequences whose prompts end in the batch.

        Returns:
            The next token of each chunk that is final, in order; chosen as its sampling parameters say, `forced_output` apart.
        """
        ...
