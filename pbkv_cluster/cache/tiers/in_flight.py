"""The transfers that have been submitted and are not done, and the slots that they keep busy."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf

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
        clock: for the patience of fetches and of loads from the disk.
        log: told of blocks that did not arrive.
        on_end: told of the slots of a tier that were to be written, once each has its block or will not get it.
        """
        self._engine = engine
        self._log = log
        self._on_end = on_end
        self._pools = pools
        self._clock = clock
        self._due: dict[Transfer, float] = {}  # fetches and loads from the disk, and when their blocks are given up
        self._idle: set[Transfer] = set()  # those of them that no step waits for
        self._late: set[Transfer] = set()  # open ones that were given up when they were due
        self._open: dict[Transfer, None] = {}  # in the order in which they were submitted
        self.decisions: Counter[str] = Counter()  # blocks, by reason code
        self.waited_s = dict.fromkeys(pools, 0.0)  # by the tier in which a slot was needed that was still being copied

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
    ) -> list[Transfer]:
        """Copies blocks, pairwise. The source slots may be released as soon as this returns, and not sooner.

        Returns:
            The transfer; or two, of which the second comes after what may be late: then it is given up alone. None, if all
            sources are known to be damaged.
        """
        if source.spoiled and not source.spoiled.isdisjoint(source_slots):
            sound = [number for number, slot in enumerate(source_slots) if slot not in source.spoiled]
            lost = new_slots(set(target_slots) - {target_slots[number] for number in sound})
            target.spoiled.update(lost)
            self._on_end(target.kind, lost)
            source_slots, target_slots, labels = _chosen(sound, source_slots, target_slots, labels)
        parts = source.by_writer(source_slots)
        return [
            self._submit(source, sources, target, targets, named, urgent)
            for sources, targets, named in (_chosen(part, source_slots, target_slots, labels) for part in parts if part)
        ]

    def _submit(
        self,
        source: BlockPool,
        source_slots: Slots,
        target: BlockPool,
        target_slots: Slots,
        labels: Sequence[BlockLabel],
        urgent: bool,
    ) -> Transfer:
        after = source.writers(source_slots)
        transfer = Transfer(source.kind, source_slots, target.kind, target_slots, after, labels, urgent=urgent)
        if self._engine.submit(transfer):
            transfer.state = _DONE
            self._on_end(target.kind, target_slots)
            return transfer
        self._open[transfer] = None
        if source.kind is Tier.DISK:
            self._due[transfer] = inf
            self._idle.add(transfer)
        source.begin(source_slots)
        target.begin(target_slots, transfer)
        return transfer

    def writes_to(self, tier: Tier) -> bool:
        """Whether a transfer to a tier is under way."""
        return any(transfer.target is tier for transfer in self._open)

    def reads_from(self, tier: Tier) -> bool:
        """Whether a transfer from a tier is under way."""
        return any(transfer.source is tier for transfer in self._open)

    def is_late(self, source: Tier) -> bool:
        """Whether something that was given up is still on its way from some kind of memory: all else from there comes later."""
        return any(transfer.source is source for transfer in self._late)

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
            patience_s: seconds; what a fetch or a load from the disk among them, which no step has waited for yet, has not
                brought by then is given up.
        """
        transfer.expedite()
        for each in self._idle.intersection(transfer.with_earlier()) if self._idle else ():
            self._idle.remove(each)
            self._due[each] = min(self._due[each], self._clock.now() + patience_s)

    def poll(self) -> None:
        """Takes note of the transfers that have been completed, and gives up the blocks of those that are late."""
        self._note_completed()
        if self._due:
            now = self._clock.now()
            for transfer in [each for each, due in self._due.items() if now >= due]:
                self._give_up(transfer)

    def _note_completed(self) -> None:
        if self._open:
            for transfer in self._engine.completed():
                self._end(transfer)

    def _give_up(self, transfer: Transfer) -> None:
        """Whoever waits for the blocks of a transfer is to compute them. Its slots stay busy until it has ended."""
        reason = "load_late" if transfer.patience_s is None else "fetch_late"
        self._late.add(transfer)
        self.decisions[reason] += self._abandon(transfer)
        self._log.note_keys(reason, _keys(transfer, self._pools[transfer.target].spoiled))
        for other in self._open:  # in their order: what is copied from where it should have arrived is late, too
            if not other.given_up and any(earlier.given_up for earlier in other.after):
                self._abandon(other)

    def _abandon(self, transfer: Transfer) -> int:
        """Nobody waits for it, nor for its slots, any more. Returns the number of these that have been waited for."""
        self._forget_due(transfer)
        transfer.given_up = True
        target = self._pools[transfer.target]
        target.withhold(transfer.target_slots)
        if transfer.source_slots:
            self._pools[transfer.source].withhold(transfer.source_slots)
        return target.spoil(transfer)

    def _forget_due(self, transfer: Transfer) -> None:
        self._due.pop(transfer, None)
        self._idle.discard(transfer)

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        """Blocks until some transfers are done, or given up because one of them, or one before them, is late.

        Args:
            transfers: that are waited for.
            timeout_s: seconds after which it returns all the same; None: never.
        """
        end = inf if timeout_s is None else self._clock.now() + timeout_s
        while late := [each for each in transfers if not each.done and not each.given_up]:
            waited = {each for transfer in late for each in transfer.with_earlier() if each in self._due}
            due = min((self._due[each] for each in waited), default=inf)
            until = min(due, end)
            self._engine.wait(late, None if until == inf else max(0.0, until - self._clock.now()))
            self.poll()
            if end < due:
                return
            for each in waited & self._due.keys():
                if self._due[each] <= due < inf:
                    self._give_up(each)  # also if the clock says that it has a moment left
            assert due < inf or all(each.done for each in late), "a transfer that was waited for was not reported"

    def wait_for_late(self, timeout_s: float | None = None) -> bool:
        """Blocks until what was given up has ended, and all that keeps its slots busy, so that they are room again; or until
        `timeout_s` seconds have passed.

        Returns:
            Whether there was anything to wait for.
        """
        late = [each for each in self._open if self._withholds(each)]
        if late:
            self._engine.wait(late, timeout_s)
            self._note_completed()
        return bool(late)

    def _withholds(self, transfer: Transfer) -> bool:
        """Whether slots that are no room now wait for a transfer, itself given up or not."""
        targets = self._pools[transfer.target].withholds(transfer.target_slots)
        return targets or (transfer.patience_s is None and self._pools[transfer.source].withholds(transfer.source_slots))

    def wait_for_slots(self, pool: BlockPool, count: int) -> None:
        """Blocks until a pool has `count` free slots. It must have room for them, so meanwhile nothing is given up.

        It may have fewer than that if one that was leaving turns out to have no memory.
        """
        assert count <= pool.room
        if count > pool.free_slots:
            self._note_completed()
        if count > pool.free_slots:
            began_at = self._clock.now()
            self._free_slots(pool, count)
            self.waited_s[pool.kind] += self._clock.now() - began_at

    def _free_slots(self, pool: BlockPool, count: int) -> None:
        for transfer in sorted(self._open, key=lambda transfer: transfer.may_be_late):
            if count <= pool.free_slots:
                return
            if pool.kind in (transfer.source, transfer.target) and not transfer.done and not transfer.given_up:
                self._engine.wait((transfer,))
                self._note_completed()
                assert transfer.done, "a transfer that was waited for was not reported"

    def _end(self, transfer: Transfer) -> None:
        assert transfer in self._open, "reported twice, or never submitted"
        assert all(earlier.done for earlier in transfer.after), "a transfer was completed before one that it depends on"
        del self._open[transfer]
        transfer.state, transfer.after = _DONE, ()  # so that no chain of ended transfers stays in memory
        self._forget_due(transfer)
        self._late.discard(transfer)
        if transfer.patience_s is None:
            source = self._pools[transfer.source]
            if transfer.failed and not transfer.given_up:
                source.spoil_slots(transfer.damaged)
            source.end(transfer.source_slots)
        self._pools[transfer.target].end(transfer.target_slots, True, transfer.failed, transfer.unbacked)
        if transfer.failed:
            reason = "load_failed" if transfer.target is Tier.GPU else "store_failed"
            if not transfer.given_up:  # else they have been counted
                self.decisions[reason if transfer.patience_s is None else "fetch_failed"] += len(transfer.failed)
                if transfer.patience_s is not None:
                    self._log.note_keys("fetch_failed", _keys(transfer, transfer.failed))
            if transfer.unbacked:
                self.decisions["slot_unbacked"] += len(transfer.unbacked)
        self._on_end(transfer.target, transfer.target_slots)


def _chosen(
    numbers: Sequence[int], sources: Slots, targets: Slots, labels: Sequence[BlockLabel]
) -> tuple[Slots, Slots, Sequence[BlockLabel]]:
    """Some of the pairs of a transfer, and their labels, if there are any."""
    if len(numbers) == len(sources):
        return sources, targets, labels
    chosen = [labels[number] for number in numbers] if labels else ()
    return new_slots(sources[number] for number in numbers), new_slots(targets[number] for number in numbers), chosen


def _keys(transfer: Transfer, slots: Collection[int]) -> list[bytes]:
    """Of the blocks that a transfer was to write to some slots, if it has labels."""
    return [label.key for slot, label in zip(transfer.target_slots, transfer.labels, strict=False) if slot in slots]
