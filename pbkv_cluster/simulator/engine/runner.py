"""A runner without a device: batches and transfers advance a manual clock by the times of a cost model."""

from collections.abc import Iterable, Sequence

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.simulator.engine.cost_model import CostModel


class SimulatedTransferEngine:
    """Copies nothing, and takes as long as if it did. Each transfer is done, in virtual time, before anything else goes on."""

    labelled = False

    def __init__(self, cost: CostModel, clock: ManualClock) -> None:
        self._cost = cost
        self._clock = clock

    def submit(self, transfer: Transfer) -> bool:
        """See `TransferEngine.submit`."""
        self._clock.advance(self._cost.copy_seconds(len(transfer)))
        return True

    def completed(self) -> Sequence[Transfer]:
        """See `TransferEngine.completed`."""
        return ()

    def wait(self, transfers: Iterable[Transfer]) -> None:
        """See `TransferEngine.wait`."""

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """See `TransferEngine.seconds`."""
        return self._cost.copy_seconds(blocks)


class SimulatedRunner:
    """Computes nothing. The tokens that it returns mean nothing: every request must force its output."""

    vocabulary = 1 << 30
    max_context = 1 << 24
    eos: frozenset[int] = frozenset()

    def __init__(self, gpu_blocks: int, host_blocks: int, cost: CostModel, clock: ManualClock) -> None:
        self.gpu_blocks = gpu_blocks
        self.host_blocks = host_blocks
        self.cost = cost
        self.transfer_engine = SimulatedTransferEngine(cost, clock)
        self._clock = clock
        self.started: set[str] = set()  # requests that have been in a batch

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        """See `Runner.run`."""
        seconds, sequences, context = 0.0, 0, 0
        for chunk in chunks:
            if chunk.count == 1 and chunk.final:
                sequences += 1
                context += chunk.start
            else:
                seconds += self.cost.prefill_seconds(chunk.start, chunk.count)
            self.started.add(chunk.sequence.request.id)
        self._clock.advance(seconds + self.cost.decode_seconds(sequences, context))
        return [0 for chunk in chunks if chunk.final]
