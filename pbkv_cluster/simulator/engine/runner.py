"""A runner without a device: batches and transfers advance a manual clock by the times of a cost model."""

from collections.abc import Iterable, Sequence
from math import inf

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Slots
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.simulator.engine.cost_model import CostModel

BUFFER_BYTES = 64 << 20  # of blocks that wait to be written to the disk, as `store/disk/write_behind` has them


class SimulatedTransferEngine:
    """Copies nothing, and takes as long as if it did. Each way, to the GPU, from it, and from the disk, carries one transfer at
    a time. The disk is written behind: a transfer there is done when the buffer has room for it.
    """

    labelled = False

    def __init__(self, cost: CostModel, clock: ManualClock) -> None:
        self._cost = cost
        self._clock = clock
        self._free_at: dict[Tier, float] = {}  # by `_way`: when it is free again
        self._written_at = 0.0  # when all that the buffer has will be on disk
        self._under_way: dict[Transfer, float] = {}  # when each will be completed

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way, or has not been reported."""
        return bool(self._under_way)

    def submit(self, transfer: Transfer) -> bool:
        """See `TransferEngine.submit`."""
        ready = max([self._clock.now(), *(self.completed_at(each) for each in transfer.after)])
        if transfer.target is Tier.DISK:
            end = ready + self._buffer_seconds(len(transfer), ready)
            self._written_at = max(self._written_at, ready) + self._cost.disk_seconds(len(transfer))
        else:
            way = _way(transfer.source, transfer.target)
            end = max(ready, self._free_at.get(way, 0.0)) + self._copy_seconds(transfer.source, transfer.target, len(transfer))
            self._free_at[way] = end
        if Tier.GPU in (transfer.source, transfer.target):
            self._clock.advance(self._cost.copy_delay * self._cost.copy_seconds(len(transfer)))
        if end <= self._clock.now():
            return True
        self._under_way[transfer] = end
        return False

    def _copy_seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """How long the copies of a transfer take, but of one to the disk."""
        read = self._cost.disk_seconds(blocks) if source is Tier.DISK else 0.0
        return read + (self._cost.copy_seconds(blocks) if Tier.GPU in (source, target) else 0.0)

    def _buffer_seconds(self, blocks: int, now: float) -> float:
        """How long it takes until the disk's buffer has room for so many blocks."""
        waiting = max(0.0, self._written_at - now) + self._cost.disk_seconds(blocks)
        return max(0.0, waiting - self._cost.disk_seconds(max(1, BUFFER_BYTES // self._cost.block_bytes)))

    def completed_at(self, transfer: Transfer) -> float:
        """When a transfer that has been submitted is completed; 0 if it has been reported."""
        return self._under_way.get(transfer, 0.0)

    def completed(self) -> Sequence[Transfer]:
        """See `TransferEngine.completed`."""
        done = [transfer for transfer, at in self._under_way.items() if at <= self._clock.now()]
        for transfer in done:
            del self._under_way[transfer]
        return done

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        """See `TransferEngine.wait`."""
        now = self._clock.now()
        self._clock.advance_to(
            min(max([now, *map(self.completed_at, transfers)]), inf if timeout_s is None else now + timeout_s)
        )

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """See `TransferEngine.seconds`. Of copies between GPU and host memory, what is under way is left out."""
        now = self._clock.now()
        if target is Tier.DISK:
            return self._buffer_seconds(blocks, now)
        waiting = max(0.0, self._free_at.get(Tier.DISK, 0.0) - now) if source is Tier.DISK else 0.0
        return waiting + self._copy_seconds(source, target, blocks)

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        """See `TransferEngine.trial_blocks`: the times are known."""
        return 0

    def erase(self, tier: Tier, slots: Slots) -> None:
        """See `TransferEngine.erase`: slots say nothing."""


def _way(source: Tier, target: Tier) -> Tier:
    """The end that copies have in common of which one is made at a time."""
    return Tier.DISK if source is Tier.DISK else target


class SimulatedRunner:
    """Computes nothing. The tokens that it returns mean nothing: every request must force its output."""

    vocabulary = 1 << 30
    max_context = 1 << 24
    eos: frozenset[int] = frozenset()

    def __init__(
        self, gpu_blocks: int, host_blocks: int, cost: CostModel, clock: ManualClock, begun: set[str], disk_blocks: int = 0
    ) -> None:
        """Args:
        gpu_blocks: of the pool on the GPU.
        host_blocks: of that in host memory.
        cost: how long everything takes.
        clock: is advanced by that.
        begun: takes the ids of requests that have been in a batch.
        disk_blocks: of the pool on the disk; 0: there is none.
        """
        self.gpu_blocks = gpu_blocks
        self.host_blocks = host_blocks
        self.disk_blocks = disk_blocks
        self.cost = cost
        self.transfer_engine = SimulatedTransferEngine(cost, clock)
        self._clock = clock
        self._begun = begun

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """See `Runner.run`."""
        seconds, sequences, context = 0.0, 0, 0
        for chunk in chunks:
            if chunk.count == 1 and chunk.final:
                sequences += 1
                context += chunk.start
            else:
                seconds += self.cost.prefill_seconds(chunk.start, chunk.count)
            self._begun.add(chunk.sequence.request.id)
        self._clock.advance(seconds + self.cost.decode_seconds(sequences, context))
        return [0 for chunk in chunks if chunk.final]
