"""The slots of one tier and their states."""

from collections import Counter
from collections.abc import Sequence, Set
from enum import Enum

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import NO_SLOTS, Slots, new_slots
from pbkv_cluster.core.usage import Tier


class SlotState(Enum):
    """`BlockPool` is the only writer.

    | state    | meaning                                              | next                                            |
    |----------|------------------------------------------------------|-------------------------------------------------|
    | FREE     | holds nothing that can be matched                    | RESIDENT (`take`, `withdraw`)                   |
    | RESIDENT | holds a block, or belongs to a running sequence      | ARRIVING (`begin`), FREE or LEAVING (`release`) |
    | ARRIVING | a transfer writes its block                          | RESIDENT (`end`), LEAVING (`release`)           |
    | LEAVING  | its block has gone; a transfer still reads or        | FREE (`end` of the last such transfer)          |
    |          | writes it                                            |                                                 |
    | UNBACKED | the machine has no memory for it; a slot of which a  |                                                 |
    |          | transfer reports this gets here where it would       |                                                 |
    |          | become FREE                                          |                                                 |
    """

    FREE = "free"
    ARRIVING = "arriving"
    RESIDENT = "resident"
    LEAVING = "leaving"
    UNBACKED = "unbacked"


class BlockPool:
    """Hands out the slots of a tier, each the size of one block. It knows numbers only; the bytes are the transfer engine's.

    States are not stored per slot: most slots are free or resident, and these are told apart by the free list. What is kept is
    kept for slots in transfer only, so that a cache whose engine finishes at once pays nothing for it.
    """

    def __init__(self, kind: Tier, capacity: int) -> None:
        """Args:
        kind: of memory.
        capacity: slots; may be 0.
        """
        self.kind = kind
        self.capacity = capacity
        self.room = capacity  # slots that can be taken once the transfers of now are done: free or leaving, but not withheld
        self._free = new_slots(range(capacity - 1, -1, -1))
        self.aside: dict[int, None] = {}  # free slots that are taken last, not in `_free`
        self._busy: dict[int, int] = {}  # slots in transfer: how many transfers read or write each
        self._arriving: dict[int, Transfer] = {}
        self._leaving: set[int] = set()
        self._withheld: set[int] = set()  # slots in transfer of which nobody knows how long that takes
        self.spoiled: set[int] = set()  # resident slots that did not get their blocks, or hold damaged ones
        self._without_memory: set[int] = set()  # slots of which transfers have reported that
        self._unbacked: set[int] = set()  # those of them that are given up

    @property
    def free_slots(self) -> int:
        """Slots that can be taken now."""
        return len(self._free) + len(self.aside)

    @property
    def used_slots(self) -> int:
        """Slots that hold a block or belong to a running sequence."""
        return self.capacity - self.room - self.unbacked_slots - len(self._leaving & self._withheld)

    @property
    def unbacked_slots(self) -> int:
        """Slots that are used no more, because the machine has no memory for them."""
        return len(self._unbacked)

    @property
    def stuck_slots(self) -> int:
        """Used slots that are no room when they are released, but only once a transfer of which nobody knows when has ended."""
        return len(self._withheld - self._leaving) if self._withheld else 0

    def room_in(self, slots: Slots) -> int:
        """How many of some used slots are room when they are released."""
        return len(slots) - len(self._withheld.intersection(slots)) if self._withheld else len(slots)

    def take(self, count: int) -> Slots:
        """Takes `count` free slots; there must be as many."""
        assert 0 <= count <= self.free_slots
        if count == 0:
            return new_slots()
        taken = self._free[-count:]
        del self._free[-count:]
        self.room -= count
        while len(taken) < count:
            taken.append(self.aside.popitem()[0])
        return taken

    def set_aside(self, slots: Slots) -> None:
        """Takes these slots, which are free, after all others; and no longer those that were set aside before."""
        self._free = new_slots(self.aside) + self._free
        self.aside = dict.fromkeys(slots)
        self._free = new_slots(slot for slot in self._free if slot not in self.aside)

    def withdraw(self, slots: Slots) -> None:
        """Takes these slots, which are free."""
        self.room -= len(slots)
        taken = {slot for slot in slots if slot not in self.aside}
        for slot in slots:
            self.aside.pop(slot, None)
        if taken:
            self._free = new_slots(slot for slot in self._free if slot not in taken)

    def release(self, slots: Slots) -> None:
        """Gives up slots, whose blocks have gone. Each is free at once, or when no transfer reads or writes it any more."""
        self.room += len(slots)
        if self.spoiled:
            self.spoiled.difference_update(slots)
        if self._busy:
            leaving = self._busy.keys() & set(slots)
            if leaving:
                self._leaving |= leaving
                self.room -= len(leaving & self._withheld)
                for slot in leaving:
                    self._arriving.pop(slot, None)
                slots = new_slots(slot for slot in slots if slot not in leaving)
        self._free.extend(self._backed(slots) if self._without_memory else slots)

    def begin(self, slots: Slots, writer: Transfer | None = None) -> None:
        """A transfer is about to read these slots; or to write them, if it is their `writer`."""
        busy = self._busy
        for slot in slots:
            busy[slot] = busy.get(slot, 0) + 1
        if writer is not None:
            self._arriving.update(dict.fromkeys(slots, writer))

    def end(self, slots: Slots, written: bool = False, failed: Slots = NO_SLOTS, unbacked: Slots = NO_SLOTS) -> None:
        """A transfer that has read these slots is done; or one that has written them, but for some that it `failed` to.

        Those of them that are `unbacked` have no memory. They are given up as soon as they hold nothing: a free slot that
        fails each time would be taken first each time, and keep the tier from making room.
        """
        if failed:
            self.spoiled.update(self._arriving.keys() & set(failed))
            self._without_memory.update(unbacked)
        for slot in slots:
            if written:
                self._arriving.pop(slot, None)
            if self._busy[slot] > 1:
                self._busy[slot] -= 1
                continue
            del self._busy[slot]
            if slot in self._withheld:
                self._withheld.remove(slot)
                self.room += slot in self._leaving
            if slot in self._leaving:
                self._leaving.remove(slot)
                freed = new_slots((slot,))
                self._free.extend(self._backed(freed) if self._without_memory else freed)

    def withhold(self, slots: Slots) -> None:
        """A transfer that reads or writes these slots is late. While it does, they are no room: who needs it must not wait."""
        late = set(slots) - self._withheld
        self._withheld |= late
        self.room -= len(late & self._leaving)

    def withholds(self, slots: Slots) -> bool:
        """Whether any of these slots are withheld."""
        return bool(self._withheld) and not self._withheld.isdisjoint(slots)

    def spoil(self, transfer: Transfer) -> int:
        """Those that wait for what a transfer writes are to wait no longer. Returns the number of its slots still arriving."""
        late = [slot for slot in transfer.target_slots if self._arriving.get(slot) is transfer]
        self.spoiled.update(late)
        return len(late)

    def spoil_slots(self, slots: Slots) -> None:
        """What these slots hold, which a transfer has read, turned out to be damaged."""
        self.spoiled.update(slot for slot in slots if slot not in self._leaving)

    def unwritten(self) -> Set[int]:
        """The resident slots without their blocks: a transfer still writes them, or has failed to."""
        return self._arriving.keys() | self.spoiled if self.spoiled else self._arriving.keys()

    def sound(self, slots: Slots) -> int:
        """How many of some slots come before the first that did not get its block."""
        return min((slots.index(slot) for slot in self.spoiled & set(slots)), default=len(slots))

    def writers(self, slots: Slots) -> list[Transfer]:
        """The transfers that write these slots, each once."""
        if not self._arriving:
            return []
        return list(dict.fromkeys(self._arriving[slot] for slot in slots if slot in self._arriving))

    def by_writer(self, slots: Slots) -> tuple[Sequence[int], Sequence[int]]:
        """The numbers of some slots: without those that a transfer writes which may be late, and these."""
        if not self._arriving:
            return range(len(slots)), ()
        writers = {writer for writer in self.writers(slots) if writer.may_be_late}
        late = [at for at, slot in enumerate(slots) if self._arriving.get(slot) in writers] if writers else []
        if not late:
            return range(len(slots)), ()
        left = set(late)
        return [at for at in range(len(slots)) if at not in left], late

    def arriving(self, slots: Slots) -> Counter[Tier]:
        """Those of these slots that transfers write to, counted by the tiers that these copy from."""
        if not self._arriving:
            return Counter()
        return Counter(self._arriving[slot].source for slot in slots if slot in self._arriving)

    def fetched(self, slots: Slots, blocks: Sequence[int]) -> int:
        """How many of some blocks come before the first whose slot a fetch still writes.

        Args:
            slots: of all blocks of their node.
            blocks: by number.
        """
        if not self._arriving:
            return len(blocks)
        writers = (self._arriving.get(slots[block]) for block in blocks)
        late = (at for at, writer in enumerate(writers) if writer is not None and writer.patience_s is not None)
        return next(late, len(blocks))

    def staging(self, slots: Slots) -> tuple[int, set[Transfer]]:
        """How many of some slots come before the first to which a block is still brought from elsewhere than the GPU, and the
        transfers that bring blocks to any of them from there.
        """
        if not self._arriving:
            return len(slots), set()
        writers = {at: self._arriving[slot] for at, slot in enumerate(slots) if slot in self._arriving}
        late = {at: writer for at, writer in writers.items() if writer.source is not Tier.GPU}
        return min(late, default=len(slots)), set(late.values())

    def _backed(self, slots: Slots) -> Slots:
        """Those of the slots, which become free, that have memory. The others are given up."""
        given_up = self._without_memory & set(slots)
        self._unbacked |= given_up
        self.room -= len(given_up)
        return new_slots(slot for slot in slots if slot not in given_up)

    def vacant(self) -> Slots:
        """The slots that hold no block any more: free, or leaving. In no order."""
        return self._free + new_slots(self.aside) + new_slots(self._leaving)

    def free(self) -> Slots:
        """The free slots, in no order. Slow: for tests."""
        return self._free + new_slots(self.aside)

    def state(self, slot: int) -> SlotState:
        """The state of one slot. Slow: for tests."""
        if slot in self._leaving:
            return SlotState.LEAVING
        if slot in self._unbacked:
            return SlotState.UNBACKED
        if slot in self._arriving:
            return SlotState.ARRIVING
        return SlotState.FREE if slot in self.aside or slot in self._free else SlotState.RESIDENT

    def check_integrity(self, used: list[int]) -> None:
        """Args:
        used: every slot that holds a block or belongs to a running sequence.

        Raises:
            AssertionError: these, the free, the leaving and the unbacked slots are not the whole pool, each once.
        """
        assert self.room == self.free_slots + len(self._leaving - self._withheld), f"{self.kind}: room miscounted"
        assert self._busy.keys() >= self._withheld, f"{self.kind}: a slot is withheld for no transfer"
        assert self._busy.keys() >= self._leaving | self._arriving.keys(), f"{self.kind}: a slot waits for no transfer"
        found = sorted([*self._free, *self.aside, *self._leaving, *self._unbacked, *used])
        assert found == list(range(self.capacity)), f"{self.kind}: slots leaked or used twice"
