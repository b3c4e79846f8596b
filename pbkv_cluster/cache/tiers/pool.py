"""Slots of one tier: which are free."""

from pbkv_cluster.cache.tree.node import Level, Slots, new_slots


class BlockPool:
    """Hands out the slots of a tier, each the size of one block. It knows numbers only; the bytes are the mover's."""

    def __init__(self, level: Level, capacity: int) -> None:
        """Args:
        capacity: slots; may be 0.
        """
        self.level = level
        self.capacity = capacity
        self._free = new_slots(range(capacity - 1, -1, -1))

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def used_slots(self) -> int:
        return self.capacity - len(self._free)

    def take(self, count: int) -> Slots:
        """Takes `count` free slots; there must be as many."""
        assert 0 <= count <= len(self._free)
        if count == 0:
            return new_slots()
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def give(self, slots: Slots) -> None:
        """Gives slots back."""
        self._free.extend(slots)

    def check_integrity(self, used: list[int]) -> None:
        """Raises:
        AssertionError: `used` and the free slots are not the whole pool, each once.
        """
        assert sorted([*self._free, *used]) == list(range(self.capacity)), f"{self.level.name}: slots leaked or used twice"
