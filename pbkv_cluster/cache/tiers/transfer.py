"""Transfers of blocks between tiers: what the cache decides, and the contract of the engines that carry it out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import Protocol

from pbkv_cluster.cache.tree.node import NO_SLOTS, Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.usage import Tier


class TransferState(Enum):
    """The cache is the only writer.

    | state     | meaning                                                              | next |
    |-----------|----------------------------------------------------------------------|------|
    | SUBMITTED | its source slots may be read, and its target slots written, any time | DONE |
    | DONE      | the bytes are in the target slots, or will be before anything that   |      |
    |           | is started from now on reads them; but for those in `failed`         |      |
    """

    SUBMITTED = "submitted"
    DONE = "done"


_SUBMITTED, _DONE = TransferState.SUBMITTED, TransferState.DONE  # an attribute of an enum is slow to read in Python 3.11


class LayerArrival(Protocol):
    """A load that brings all its blocks layer by layer, so that a step that needs them can begin before it is done.

    A block may turn out to be damaged after its layers have come. So what such a step computes counts only if the transfer is
    done afterwards, and none of the step's blocks is in `Transfer.failed`.
    """

    def wait(self, layer: int) -> None:
        """To be called before a step reads a layer: on return the layer is there, or will be before anything that is computed
        from now on. It returns, too, if the transfer has ended without the layer.
        """
        ...

    def seconds_left(self) -> float:
        """How long the transfer takes until it is done, from recent measurements; infinite if there are none."""
        ...


class Transfer:
    """Copies of whole blocks, pairwise, from slots of one tier to slots of another.

    Or a fetch: its blocks lie with other workers, so it has no source slots, and the engine finds them by their labels.
    """

    __slots__ = (
        "after",
        "failed",
        "given_up",
        "labels",
        "layers",
        "patience_s",
        "source",
        "source_slots",
        "state",
        "target",
        "target_slots",
        "unbacked",
        "urgent",
    )

    def __init__(
        self,
        source: Tier,
        source_slots: Slots,
        target: Tier,
        target_slots: Slots,
        after: Sequence[Transfer] = (),
        labels: Sequence[BlockLabel] = (),
        patience_s: float | None = None,
        urgent: bool = True,
    ) -> None:
        assert len(source_slots) == (len(target_slots) if patience_s is None else 0)
        self.source = source
        self.source_slots = source_slots
        self.target = target
        self.target_slots = target_slots
        self.after = after  # transfers that write the source slots; they have to be carried out before this one
        self.labels = labels  # of the blocks, to be stored with them, or to find them by; none: the target tier keeps none
        self.patience_s = patience_s  # of a fetch: seconds after which its blocks are computed instead. None: it is none
        self.layers: LayerArrival | None = None  # the engine sets it when it takes a load that arrives layer by layer
        self.failed = NO_SLOTS  # target slots that did not get their blocks; the engine sets it before it reports completion
        self.given_up = False  # nobody waits for its blocks any more; set by the cache, and read by the engine's threads
        self.unbacked = NO_SLOTS  # those of them that the machine has no memory for
        self.urgent = urgent  # a sequence or another transfer may wait for it; the others come later
        self.state = _SUBMITTED
        for each in after:
            each.expedite()

    def __len__(self) -> int:
        """Blocks."""
        return len(self.target_slots)

    @property
    def done(self) -> bool:
        return self.state is _DONE

    def with_earlier(self) -> Collection[Transfer]:
        """It, and all that it has to come after, each once: many may come after the same ones."""
        found = {self: None}
        pending = [self]
        while pending:
            new = [each for each in dict.fromkeys(pending.pop().after) if each not in found]
            found |= dict.fromkeys(new)
            pending += new
        return found.keys()

    @property
    def may_be_late(self) -> bool:
        """Whether it may take as long as another node, or the disk, does."""
        return any(each.patience_s is not None or each.source is Tier.DISK for each in self.with_earlier())

    @property
    def damaged(self) -> Slots:
        """The source slots of a load, or of what is staged, whose blocks could not be copied from there."""
        if self.source is Tier.GPU or self.target is Tier.DISK:
            return NO_SLOTS  # what could not be stored is still sound
        failed = set(self.failed).difference(self.unbacked)
        pairs = zip(self.source_slots, self.target_slots, strict=True)
        return new_slots(source for source, target in pairs if target in failed)

    def expedite(self) -> None:
        """Something waits for it from now on, and so for those that it comes after."""
        if not self.urgent:
            self.urgent = True
            for each in self.after:
                each.expedite()


class TransferEngine(Protocol):
    """Carries out transfers between the pools of one process. Only the thread that owns the cache calls it.

    Until a transfer is done, the cache does not use its source slots for anything else, and no step computes on its target
    slots, unless it waits for each layer of each of its transfers, which must have `Transfer.layers`. So an engine may
    copy at any time between `submit` and the report of completion, and several transfers in any order, as long as it carries
    out and reports those in `Transfer.after` first. Transfers that are not `urgent` are prefetches: those that are go before
    them. One can become urgent while it waits.

    Of a transfer that is `given_up`, an engine need not copy what it has not begun to; it names that in `Transfer.failed`, and
    reports the transfer as any other.

    A block may turn out to be damaged, or its target to have no memory. Such blocks are named in `Transfer.failed`, with those
    that another transfer was to copy from there, and slots without memory in `Transfer.unbacked`, too. Only a transfer that is
    reported by `completed` can fail.
    """

    labelled: bool  # whether transfers to slower tiers need labels

    def submit(self, transfer: Transfer) -> bool:
        """Starts a transfer, after everything that has been computed so far: the source slots may have just been written.

        Returns:
            True if it is done already, or if all compute and transfers that are started from now on are ordered after it, as on
            one CUDA stream. Such a transfer is never reported by `completed`.
        """
        ...

    def completed(self) -> Sequence[Transfer]:
        """The transfers that have been completed since the last call. Does not block."""
        ...

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        """Blocks until some submitted transfers have been completed, or `timeout_s` seconds have passed. `completed` still has
        to report them.
        """
        ...

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """How long a transfer takes, from recent measurements."""
        ...

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        """Blocks that are worth copying that way however long it has taken: nothing was copied there for a while, so that it
        may have become faster. 0: the measurements are recent, or there are none yet.
        """
        ...

    def erase(self, tier: Tier, slots: Slots) -> None:
        """Has slots that hold no block any more say so, where they say what they hold: no later process finds the blocks that
        were there. Returns when that is done. Transfers that have been submitted may read or write the slots until then.
        Slots of those that were given up, or wait for such, say so only when these have ended.
        """
        ...


class NullTransferEngine:
    """Does nothing, at once: for caches without bytes, in tests, benchmarks and shadows."""

    labelled = False

    def submit(self, transfer: Transfer) -> bool:
        return True

    def completed(self) -> Sequence[Transfer]:
        return ()

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        pass

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return 0.0

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        return 0

    def erase(self, tier: Tier, slots: Slots) -> None:
        pass
