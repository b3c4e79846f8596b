"""The worth of keeping a block: hits a second of residence, at the best time to give up waiting for one.

    score = max over h of (1 - S(h)) / (integral from 0 to h of S + overhead)

S(h) is the probability that nobody has used the block h seconds from now. It is the Gittins index of waiting (Gittins, JRSS B
41(2), 1979), which as an eviction order is known as hit density (Beckmann et al.: LHD, NSDI 2018).
"""

from __future__ import annotations

import numpy as np

from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank.timing import HORIZONS

_WIDTHS = np.diff(HORIZONS, prepend=0.0) / 2


def hit_density(unused: Floats, overhead: float) -> Floats:
    """Hits a unit of time.

    Args:
        unused: S at `HORIZONS`, the last axis, not increasing along it.
        overhead: soonest that a hit can come about, in the horizons' units.
    """
    before = np.empty_like(unused)
    before[..., 0], before[..., 1:] = 1.0, unused[..., :-1]
    waited = ((unused + before) * _WIDTHS).cumsum(axis=-1)
    density: Floats = ((1.0 - unused) / (waited + overhead)).max(axis=-1)
    return density
