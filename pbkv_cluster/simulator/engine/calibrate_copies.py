"""Measures copies between host memory and GPU: how fast they are, and by how much they delay decodes that run meanwhile."""

from collections.abc import Sequence
from statistics import median

from pbkv_cluster.cache.tiers.transfer import Transfer, TransferEngine
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.runner import Runner
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.simulator.workload.token_source import NAMESPACE

COPIES = 20
"""Loads of which each figure is made."""

_BLOCKS_MAX = 64


class HostLoads:
    """Loads of some blocks from a runner's host memory to the last blocks of its pool on the GPU."""

    def __init__(self, runner: Runner, clock: Clock, blocks: int) -> None:
        """Puts the blocks into host memory.

        Args:
            runner: with an allocated pool.
            clock: a real clock.
            blocks: of each load; at least 1, and as many must be in both pools.
        """
        self._engine: TransferEngine = runner.transfer_engine
        self._clock = clock
        self.blocks = blocks
        self._gpu = new_slots(range(runner.gpu_blocks - blocks, runner.gpu_blocks))
        self._host = new_slots(range(blocks))
        label = BlockLabel(NAMESPACE.digest(), b"", b"", b"")
        self.finish(self._submit(Transfer(Tier.GPU, self._gpu, Tier.HOST, self._host, labels=[label] * blocks)))

    @classmethod
    def most(cls, runner: Runner) -> int:
        """The most blocks of a load: a quarter of the GPU's pool stays as it is for what is computed."""
        return min(_BLOCKS_MAX, runner.gpu_blocks // 4, runner.host_blocks)

    def begin(self) -> Transfer | None:
        """Starts a load; None if it is done already."""
        return self._submit(Transfer(Tier.HOST, self._host, Tier.GPU, self._gpu))

    def finish(self, load: Transfer | None) -> None:
        """Waits until a load that was started has been completed."""
        if load is not None:
            self._engine.wait((load,))
            self._engine.completed()

    def seconds(self) -> float:
        """How long a load takes while nothing is computed."""
        self.finish(self.begin())  # the first one warms up
        start = self._clock.now()
        for _ in range(COPIES):
            self.finish(self.begin())
        return max(self._clock.now() - start, 1e-9) / COPIES

    def _submit(self, transfer: Transfer) -> Transfer | None:
        return None if self._engine.submit(transfer) else transfer


class LoadingRunner:
    """A runner that loads blocks beside every second batch of decodes, and times both kinds. It has no other tier than the GPU,
    and keeps the blocks that it loads to itself.
    """

    host_blocks = 0
    disk_blocks = 0

    def __init__(self, runner: Runner, loads: HostLoads, clock: Clock) -> None:
        """Args:
        runner: what runs the batches.
        loads: from its host memory.
        clock: a real clock.
        """
        self._runner = runner
        self._loads = loads
        self._clock = clock
        self.gpu_blocks = runner.gpu_blocks - loads.blocks
        self.vocabulary = runner.vocabulary
        self.max_context = runner.max_context
        self.eos = runner.eos
        self._alone, self._beside = list[float](), list[float]()

    @property
    def transfer_engine(self) -> TransferEngine:
        return self._runner.transfer_engine

    @property
    def delay_s(self) -> float:
        """By how much a load makes a batch of decodes longer; medians are compared."""
        return median(self._beside) - median(self._alone)

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """See `Runner.run`."""
        if any(chunk.count > 1 or not chunk.final for chunk in chunks):
            return self._runner.run(chunks)
        loads = len(self._beside) < len(self._alone)
        start = self._clock.now()
        load = self._loads.begin() if loads else None
        tokens = self._runner.run(chunks)
        (self._beside if loads else self._alone).append(self._clock.now() - start)
        self._loads.finish(load)
        return tokens
