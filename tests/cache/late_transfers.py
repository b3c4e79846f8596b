"""Transfer engines that copy block keys in place of KV: one that is done at once, and one that is as late as it may be."""

import random
from collections.abc import Iterable, Mapping, Sequence

from pbkv_cluster.cache.tiers.pool import BlockPool
from pbkv_cluster.cache.tiers.transfer import Transfer, TransferState
from pbkv_cluster.cache.tree.node import Slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.usage import Tier

GARBAGE = b"garbage"
_COMPLETED = 0.03  # probability that a transfer is completed although nobody waits for it, each time that the cache asks


class TaggedEngine:
    """Does each transfer when it is submitted. What a slot holds is the key of the block written to it."""

    labelled = False

    def __init__(self) -> None:
        self.content: dict[tuple[Tier, int], bytes] = {}

    def watch(self, pools: Iterable[BlockPool]) -> None:
        """Told of the pools before the first transfer."""

    def submit(self, transfer: Transfer) -> bool:
        assert len(transfer)
        self._copy(transfer)
        return True

    def completed(self) -> Sequence[Transfer]:
        return ()

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        pass

    def catch_up(self) -> None:
        """Completes all transfers."""

    def spoil(self) -> None:
        """Whatever may be overwritten is."""

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return 0.0

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        return 0

    def erase(self, tier: Tier, slots: Slots) -> None:
        """What the slots hold is not looked at before a block is copied there."""

    def _copy(self, transfer: Transfer) -> None:
        assert len(set(transfer.target_slots)) == len(transfer)
        if transfer.patience_s is not None:
            self.content.update(((transfer.target, slot), label.key) for slot, label in _pairs(transfer))
            return
        read = [self.content[transfer.source, slot] for slot in transfer.source_slots]
        for slot, content in zip(transfer.target_slots, read, strict=True):
            assert content != GARBAGE, "a source was reused before it was read"
            self.content[transfer.target, slot] = content


class LateEngine(TaggedEngine):
    """Completes transfers in any order that `Transfer.after` allows, and as late as it is asked to at random.

    A transfer reads its sources when it is completed, never before; its targets hold garbage until then; and every free slot is
    filled with garbage whenever the engine is called.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._open: list[Transfer] = []
        self._completed: list[Transfer] = []
        self._pools: Mapping[Tier, BlockPool] = {}
        self.waited = 0  # transfers that the cache could not go on without

    def watch(self, pools: Iterable[BlockPool]) -> None:
        self._pools = {pool.kind: pool for pool in pools}

    def submit(self, transfer: Transfer) -> bool:
        assert len(transfer)
        assert transfer.state is TransferState.SUBMITTED
        self.spoil()
        self._fill(transfer.target, transfer.target_slots)
        self._open.append(transfer)
        return False

    def completed(self) -> Sequence[Transfer]:
        self.spoil()
        while self._open and self._random.random() < _COMPLETED:
            self._complete(self._random.choice([each for each in self._open if self._may_run(each)]))
        completed, self._completed = self._completed, []
        return completed

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        self.spoil()
        wanted = {each for transfer in transfers for each in transfer.with_earlier()}
        self.waited += len(wanted)
        while left := [each for each in self._open if each in wanted]:
            self._complete(self._random.choice([each for each in left if self._may_run(each)]))

    def catch_up(self) -> None:
        self.wait(tuple(self._open))

    def spoil(self) -> None:
        for kind, pool in self._pools.items():
            self._fill(kind, pool.free())

    def _fill(self, kind: Tier, slots: Slots) -> None:
        """Overwrites slots with garbage."""
        for slot in slots:
            self.content[kind, slot] = GARBAGE

    def _may_run(self, transfer: Transfer) -> bool:
        return not any(earlier in self._open for earlier in transfer.after)

    def _complete(self, transfer: Transfer) -> None:
        self._copy(transfer)
        self._open.remove(transfer)
        self._completed.append(transfer)


def _pairs(transfer: Transfer) -> Iterable[tuple[int, BlockLabel]]:
    return zip(transfer.target_slots, transfer.labels, strict=True)
