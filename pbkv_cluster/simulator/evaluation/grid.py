"""Checks the grid that comparisons and searches run over: policies, pressures, and host blocks for each GPU block."""

import math
from collections.abc import Sequence

from pbkv_cluster.core.errors import InvalidArgument


def check_grid(policies: Sequence[str], pressures: Sequence[float], host_ratio: float, disk_ratio: float = 0.0) -> None:
    """Refuses a grid that cannot be run.

    Args:
        policies: names of policies.
        pressures: shares of the infinite cache's hits that LRU is to get, each above 0 and below 1.
        host_ratio: host blocks for each GPU block.
        disk_ratio: disk blocks for each GPU block.

    Raises:
        InvalidArgument: a value is out of range, or given twice.
    """
    for name, values in (("policies", policies), ("pressure", pressures)):
        if not values or len(set(values)) != len(values) or not all(values):
            raise InvalidArgument(name, "must be different values, at least one")
    for pressure in pressures:
        if not 0 < pressure < 1:
            raise InvalidArgument("pressure", f"must be above 0 and below 1, got {pressure}")
    for name, ratio in (("host_ratio", host_ratio), ("disk_ratio", disk_ratio)):
        if not 0 <= ratio < math.inf:
            raise InvalidArgument(name, f"must be finite and not negative, got {ratio}")
    if disk_ratio and not host_ratio:
        raise InvalidArgument("disk_ratio", "needs a host tier, through which blocks go to the disk")
