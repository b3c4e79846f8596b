"""How often a node has been used, where older uses count less."""

import math


def aged_uses(uses: float, now: float, half_life: float) -> float:
    """A count of uses after one more, each use counting half as much every `half_life` seconds.

    The count is kept as log2 of the sum over uses of 2^(time of the use / half-life): its order among nodes is that of the aged
    counts at any time, and it changes only with a use. -inf before the first.
    """
    use = now / half_life
    more, less = (uses, use) if uses > use else (use, uses)
    return more + math.log2(1.0 + 2.0 ** (less - more))
