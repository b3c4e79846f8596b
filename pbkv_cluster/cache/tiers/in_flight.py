"""The transfers that have been submitted and are not done, and the slots that they keep busy."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pbkv_cluster.cache.tiers.pool import BlockPool
from pbkv_cluster.cache.tiers.transfer import Transfer, TransferEngine, TransferState
from pbkv_cluster.cache.tree.node import Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.usage import Tier

_DONE = TransferState.DONE  # an attribute of an enum is slow to read in Python 3.11


class TransfersInFlight:
    """Hands transfers to the engine, and tells the pools when each begins and ends."""

    def __init__(self, engine: TransferEngine, pools: Mapping[Tier, BlockPool]) -> None:
        self._engine = engine
        self._pools = pools
        self._open: dict[Transfer, None] = {}  # in the order in which they were submitted
        self.decisions: Counter[str] = Counter()  # blocks, by reason code

    def __len__(self) -> int:
        return len(self._open)

    def submit(
        self,
        source: BlockPool,
        source_slots: Slots,
        target: BlockPool,
        target_slots: Slots,
        labels: Sequence[BlockLabel] = (),
    ) -> None:
        """Copies blocks, pairwise. The source slots may be released as soon as this returns, and not sooner."""
        if source.spoiled and not source.spoiled.isdisjoint(source_slots):
            sound = [number for number, slot in enumerate(source_slots) if slot not in source.spoiled]
            target.spoiled |= set(target_slots) - {target_slots[number] for number in sound}
            if not sound:
                return
            source_slots = new_slots(source_slots[number] for number in sound)
            target_slots = new_slots(target_slots[number] for number in sound)
            labels = [labels[number] for number in sound] if labels else ()
        transfer = Transfer(source.kind, source_slots, target.kind, target_slots, source.writers(source_slots), labels)
        if self._engine.submit(transfer):
            transfer.state = _DONE
            return
        self._open[transfer] = None
        source.begin(source_slots)
        target.begin(target_slots, transfer)

    def poll(self) -> None:
        """Takes note of the transfers that have been completed."""
        if self._open:
            for transfer in self._engine.completed():
                self._end(transfer)

    def wait(self, transfers: Iterable[Transfer]) -> None:
        """Blocks until some transfers are done."""
        if late := [transfer for transfer in transfers if not transfer.done]:
            self._engine.wait(late)
            self.poll()
            assert all(transfer.done for transfer in late), "the engine did not report a transfer that it was told to wait for"

    def wait_for_slots(self, pool: BlockPool, count: int) -> None:
        """Blocks until a pool has `count` free slots. It must have room for them.

        It may have fewer than that if one that was leaving turns out to have no memory.
        """
        assert count <= pool.room
        if count > pool.free_slots:
            self.poll()
        for transfer in list(self._open):
            if count <= pool.free_slots:
                return
            if pool.kind in (transfer.source, transfer.target):
                self.wait((transfer,))

    def _end(self, transfer: Transfer) -> None:
        assert transfer in self._open, "reported twice, or never submitted"
        assert all(earlier.done for earlier in transfer.after), "a transfer was completed before one that it depends on"
        del self._open[transfer]
        transfer.state, transfer.after = _DONE, ()  # so that no chain of ended transfers stays in memory
        self._pools[transfer.source].end(transfer.source_slots)
        self._pools[transfer.target].end(transfer.target_slots, True, transfer.failed, transfer.unbacked)
        if transfer.failed:
            self.decisions["load_failed" if transfer.target is Tier.GPU else "store_failed"] += len(transfer.failed)
            if transfer.unbacked:
                self.decisions["slot_unbacked"] += len(transfer.unbacked)
