"""The transfers that have been submitted and are not done, and the slots that they keep busy."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.tiers.pool import BlockPool
from pbkv_cluster.cache.tiers.transfer import Transfer, TransferEngine, TransferState
from pbkv_cluster.cache.tree.node import NO_SLOTS, Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.usage import Tier

_DONE = TransferState.DONE  # an attribute of an enum is slow to read in Python 3.11


class TransfersInFlight:
    """Hands transfers to the engine, and tells the pools when each begins and ends."""

    def __init__(
        self,
        engine: TransferEngine,
        pools: Mapping[Tier, BlockPool],
        clock: Clock,
        log: DecisionLog,
        on_end: Callable[[Tier, Slots], None] = lambda tier, slots: None,
    ) -> None:
        """Args:
        engine: carries them out.
        pools: of all tiers.
        clock: for the patience of fetches.
        log: told of blocks that did not arrive.
        on_end: told of the slots of a tier that were to be written, once each has its block or will not get it.
        """
        self._engine = engine
        self._log = log
        self._on_end = on_end
        self._pools = pools
        self._clock = clock
        self._due: dict[Transfer, float] = {}  # fetches, and when their blocks are given up
        self._idle: set[Transfer] = set()  # those of them that no step waits for
        self._given_up: set[Transfer] = set()  # open ones, whose blocks nobody waits for any more
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
        urgent: bool = True,
    ) -> Transfer | None:
        """Copies blocks, pairwise. The source slots may be released as soon as this returns, and not sooner.

        Returns:
            The transfer; None: all sources are known to be damaged.
        """
        if source.spoiled and not source.spoiled.isdisjoint(source_slots):
            sound = [number for number, slot in enumerate(source_slots) if slot not in source.spoiled]
            lost = new_slots(set(target_slots) - {target_slots[number] for number in sound})
            target.spoiled.update(lost)
            self._on_end(target.kind, lost)
            if not sound:
                return None
            source_slots = new_slots(source_slots[number] for number in sound)
            target_slots = new_slots(target_slots[number] for number in sound)
            labels = [labels[number] for number in sound] if labels else ()
        after = source.writers(source_slots)
        transfer = Transfer(source.kind, source_slots, target.kind, target_slots, after, labels, urgent=urgent)
        if self._engine.submit(transfer):
            transfer.state = _DONE
            self._on_end(target.kind, target_slots)
            return transfer
        self._open[transfer] = None
        source.begin(source_slots)
        target.begin(target_slots, transfer)
        return transfer

    def writes_to(self, tier: Tier) -> bool:
        """Whether a transfer to a tier is under way."""
        return any(transfer.target is tier for transfer in self._open)

    def reads_from(self, tier: Tier) -> bool:
        """Whether a transfer from a tier is under way."""
        return any(transfer.source is tier for transfer in self._open)

    def fetch(
        self,
        source: Tier,
        target_slots: Slots,
        labels: Sequence[BlockLabel],
        patience_s: float,
        urgent: bool = True,
        target: Tier = Tier.GPU,
    ) -> Transfer:
        """Gets blocks from other workers.

        Args:
            source: kind of memory in which they lie.
            target_slots: that take them.
            labels: of the blocks.
            patience_s: seconds; those that have not arrived by then are given up.
            urgent: see `Transfer`.
            target: whose slots they are.
        """
        transfer = Transfer(source, NO_SLOTS, target, target_slots, (), labels, patience_s, urgent)
        if self._engine.submit(transfer):
            transfer.state = _DONE
            return transfer
        self._open[transfer] = None
        self._due[transfer] = self._clock.now() + patience_s
        if not urgent:
            self._idle.add(transfer)
        self._pools[target].begin(target_slots, transfer)
        return transfer

    def hasten(self, transfer: Transfer, patience_s: float) -> None:
        """A step waits for a transfer from now on, and for those that it comes after.

        Args:
            transfer: that writes what the step needs.
            patience_s: seconds; what a fetch among them that no step has waited for yet has not brought by then is given up.
        """
        transfer.expedite()
        for each in self._idle.intersection(_with_earlier(transfer)) if self._idle else ():
            self._idle.remove(each)
            self._due[each] = min(self._due[each], self._clock.now() + patience_s)

    def poll(self) -> None:
        """Takes note of the transfers that have been completed, and gives up the blocks of fetches that are late."""
        if self._open:
            for transfer in self._engine.completed():
                self._end(transfer)
        if self._due:
            now = self._clock.now()
            for transfer in [each for each, due in self._due.items() if now >= due]:
                self._give_up(transfer)

    def _give_up(self, transfer: Transfer) -> None:
        """Whoever waits for the blocks of a fetch is to compute them. It is carried to the end all the same."""
        self._forget_due(transfer)
        pool = self._pools[transfer.target]
        self.decisions["fetch_late"] += pool.spoil(transfer)
        self._log.note_keys("fetch_late", _keys(transfer, pool.spoiled))
        self._given_up.add(transfer)
        for other in self._open:  # in their order: what is copied from where it should have arrived is late, too
            if not self._given_up.isdisjoint(other.after):
                self._pools[other.target].spoil(other)
                self._given_up.add(other)

    def _forget_due(self, transfer: Transfer) -> None:
        self._due.pop(transfer, None)
        self._idle.discard(transfer)

    def wait(self, transfers: Iterable[Transfer]) -> None:
        """Blocks until some transfers are done, or given up because a fetch among them, or before one of them, is late."""
        while late := [each for each in transfers if not each.done and each not in self._given_up]:
            fetches = {each for transfer in late for each in _with_earlier(transfer) if each in self._due}
            due = min((self._due[each] for each in fetches), default=None)
            self._engine.wait(late, None if due is None else max(0.0, due - self._clock.now()))
            self.poll()
            for each in fetches & self._due.keys():
                if due is not None and self._due[each] <= due:
                    self._give_up(each)  # also if the clock says that it has a moment left
            assert fetches or all(each.done for each in late), "a transfer that was waited for was not reported"

    def wait_for_slots(self, pool: BlockPool, count: int) -> None:
        """Blocks until a pool has `count` free slots. It must have room for them.

        It may have fewer than that if one that was leaving turns out to have no memory.
        """
        assert count <= pool.room
        if count > pool.free_slots:
            self.poll()
        for transfer in sorted(self._open, key=_is_after_a_fetch):
            if count <= pool.free_slots:
                return
            if pool.kind in (transfer.source, transfer.target) and not transfer.done:
                self._engine.wait((transfer,))  # given up or not: its slots are free when it has ended
                self.poll()
                assert transfer.done, "a transfer that was waited for was not reported"

    def _end(self, transfer: Transfer) -> None:
        assert transfer in self._open, "reported twice, or never submitted"
        assert all(earlier.done for earlier in transfer.after), "a transfer was completed before one that it depends on"
        del self._open[transfer]
        transfer.state, transfer.after = _DONE, ()  # so that no chain of ended transfers stays in memory
        self._forget_due(transfer)
        self._given_up.discard(transfer)
        if transfer.patience_s is None:
            self._pools[transfer.source].end(transfer.source_slots)
        self._pools[transfer.target].end(transfer.target_slots, True, transfer.failed, transfer.unbacked)
        if transfer.failed:
            reason = "load_failed" if transfer.target is Tier.GPU else "store_failed"
            self.decisions[reason if transfer.patience_s is None else "fetch_failed"] += len(transfer.failed)
            if transfer.patience_s is not None:
                self._log.note_keys("fetch_failed", _keys(transfer, transfer.failed))
            if transfer.unbacked:
                self.decisions["slot_unbacked"] += len(transfer.unbacked)
        self._on_end(transfer.target, transfer.target_slots)


def _keys(transfer: Transfer, slots: Collection[int]) -> list[bytes]:
    """Of the blocks that a fetch was to write to some slots."""
    return [label.key for slot, label in zip(transfer.target_slots, transfer.labels, strict=True) if slot in slots]


def _with_earlier(transfer: Transfer) -> Iterator[Transfer]:
    """A transfer, and all that it has to come after."""
    yield transfer
    for each in transfer.after:
        yield from _with_earlier(each)


def _is_after_a_fetch(transfer: Transfer) -> bool:
    """Whether it may take as long as another node does."""
    return any(each.patience_s is not None for each in _with_earlier(transfer))
