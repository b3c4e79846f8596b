"""How much of a bounded queue one tenant may take, so that others find room in it.

Dynamic thresholds: nobody holds more than a multiple of the room that is left (Choudhury and Hahne, Dynamic queue length
thresholds for shared-memory packet switches, IEEE/ACM Transactions on Networking 6(2), 1998). One tenant alone may fill 8/9 of
a queue, two that flood it 8/17 each; whoever holds nothing finds room.
"""

_MULTIPLE = 8  # of the room that is left


def has_fair_room(held: int, total: int, capacity: int) -> bool:
    """Whether who holds `held` of the `total` places that are taken may take one more of `capacity`."""
    return held < _MULTIPLE * (capacity - total)
