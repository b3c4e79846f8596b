"""A runner without a device: batches and transfers advance a manual clock by the times of a cost model."""

from collections.abc import Iterable, Sequence

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Slots
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.simulator.engine.cost_model import CostModel


class SimulatedTransferEngine:
    """Copies nothing, and takes as long as if it did. Each way, to the GPU and from it, carries one transfer at a time."""

    labelled = False

    def __init__(self, cost: CostModel, clock: ManualClock) -> None:
        self._cost = cost
        self._clock = clock
        self._free_at: dict[Tier, float] = {}  # by target: when the way is free again
        self._under_way: dict[Transfer, float] = {}  # when each will be completed

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way, or has not been reported."""
        return bool(self._under_way)

    def submit(self, transfer: Transfer) -> bool:
        """See `TransferEngine.submit`."""
        seconds = self._cost.copy_seconds(len(transfer))
        now = self._clock.now()
        start = max([now, self._free_at.get(transfer.target, 0.0), *(self.completed_at(each) for each in transfer.after)])
        self._free_at[transfer.target] = start + seconds
        self._clock.advance(self._cost.copy_delay * seconds)
        if start + seconds <= self._clock.now():
            return True
        self._under_way[transfer] = start + seconds
        return False

    def completed_at(self, transfer: Transfer) -> float:
        """When a transfer that has been submitted is completed; 0 if it has been reported."""
        return self._under_way.get(transfer, 0.0)

    def completed(self) -> Sequence[Transfer]:
        """See `TransferEngine.completed`."""
        done = [transfer for transfer, at in self._under_way.items() if at <= self._clock.now()]
        for transfer in done:
            del self._under_way[transfer]
        return done

    def wait(self, transfers: Iterable[Transfer]) -> None:
        """See `TransferEngine.wait`."""
        self._clock.advance_to(max([self._clock.now(), *map(self.completed_at, transfers)]))

    def abandon(self, transfer: Transfer) -> None:
        """See `TransferEngine.abandon`: there are no fetches."""

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """See `TransferEngine.seconds`."""
        return self._cost.copy_seconds(blocks)

    def erase(self, tier: Tier, slots: Slots) -> None:
        """See `TransferEngine.erase`: slots say nothing."""


class SimulatedRunner:
    """Computes nothing. The tokens that it returns mean nothing: every request must force its output."""

    vocabulary = 1 << 30
    max_context = 1 << 24
    eos: frozenset[int] = frozenset()

    def __init__(self, gpu_blocks: int, host_blocks: int, cost: CostModel, clock: ManualClock, begun: set[str]) -> None:
        """Args:
        gpu_blocks: of the pool on the GPU.
        host_blocks: of that in host memory.
        cost: how long everything takes.
        clock: is advanced by that.
        begun: takes the ids of requests that have been in a batch.
        """
        self.gpu_blocks = gpu_blocks
        self.host_blocks = host_blocks
        self.disk_blocks = 0
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
