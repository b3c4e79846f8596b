"""Hit density: expected hits for each second that a block is kept, at the best time to give up waiting for one.

    density = max over h of (1 - S(h)) / (integral from 0 to h of S + overhead)

S(h) is the probability that nobody has used the block h seconds from now. It is the Gittins index of waiting (Gittins, JRSS B
41(2), 1979), known as an eviction order as hit density (Beckmann et al.: LHD, NSDI 2018).
"""

from __future__ import annotations

import numpy as np

from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank.timing import HORIZONS

_HALF_WIDTHS = np.diff(HORIZONS, prepend=0.0) / 2


def hit_density(unused: Floats, overhead: float) -> Floats:
    """Hits a unit of time.

    Args:
        unused: S at `HORIZONS`, the last axis, not increasing along it.
        overhead: time that a hit takes at least, in the horizons' units.
    """
    edges = unused + 1.0  # twice the mean of S over each interval
    edges[..., 1:] = unused[..., 1:] + unused[..., :-1]
    edges *= _HALF_WIDTHS
    waited = np.add.accumulate(edges, axis=-1)
    waited += overhead
    density: Floats = np.maximum.reduce((1.0 - unused) / waited, axis=-1)
    return density
