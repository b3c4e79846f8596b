"""Our own policy: learned access, ranked by hit density.

PBKV's access vector takes every block that an agent has ever touched for one that it will touch again. Here the chance of the
next use is learnt from finished workflows (`store/access`), for each of a workflow's segments and each of its coming steps, and
joined with when these steps come. What is shared is worth what all of them together make of it: workflows that have used it,
active ones that are still to come to it, and those that will start. So blocks of ended workflows need no rule of their own.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate
from pbkv_cluster.reuse.model.hazard import BIN_STARTS, Floats
from pbkv_cluster.reuse.rank.density import hit_density
from pbkv_cluster.reuse.rank.outlook import Outlook
from pbkv_cluster.reuse.rank.timing import HORIZONS, LAST_HORIZON
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment

_SHARED_STRENGTH = 60.0  # workflows that have to come before what is seen of a block counts as much as the prior
_EDGES = (*(BIN_STARTS - 1).tolist(), 30)


@POLICIES.register("pbkv")
class Pbkv(ReusePolicy):
    """The least expected hits for each second of residence go first.

    Before anything is learnt all hazards are one half, which leaves an order by recency of the workflows' steps; a guard
    watches over the rest.
    """

    learns = True
    drifts = True

    def __init__(self, config: CacheConfig) -> None:
        self._overhead = config.hit_overhead
        self._shared_prior = config.shared_prior
        self._outlook = Outlook()
        self._drives = True

    def twin(self, config: CacheConfig) -> ReusePolicy:
        other = type(self)(config)
        other._outlook, other._drives = self._outlook, False
        return other

    @property
    def model(self) -> AccessModel:
        """The access model that values follow from."""
        return self._outlook.model

    def step_began(self, owner: Owner, step: int, agent: str, now: float) -> None:
        if self._drives:
            self._outlook.began(owner, agent, now)
        else:
            self._outlook.beside(owner)

    def step_queued(self, owner: Owner, segments: Sequence[Segment], now: float) -> None:
        if self._drives:
            self._outlook.queued(owner, segments)

    def step_ended(self, owner: Owner, now: float) -> None:
        if self._drives:
            self._outlook.ended(owner, now)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        if self._drives:
            self._outlook.over(owner)

    def learnt(self, update: AccessUpdate) -> None:
        if self._drives:
            self._outlook.model.apply(update)

    def heeds(self, owner: Owner) -> bool:
        return self._outlook.heeds(owner, asked_first=self._drives)

    def due(self) -> list[str]:
        return self._outlook.due

    def value(self, node: Node, now: float) -> float:
        if not node.owners and node.entry is not None and node.entry.workflows < 2:
            return self._newcomers_alone(node.entry, now)
        return self._together((node,), now)[0]

    def values(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        # numpy's price is that of the call, be it for one node or for all of a workflow's.
        return self._together(nodes, now) if all(node.owners for node in nodes) else super().values(nodes, now)

    def _together(self, nodes: Sequence[Node], now: float) -> list[float]:
        # A row for each node.
        unused = self._outlook.unused([node.owners for node in nodes], now)
        uses, delays = np.array(self._newcomers([node.entry for node in nodes], now)).T[:, :, None]
        unused *= np.exp(-uses * np.maximum(HORIZONS - delays, 0.0))
        for at, node in enumerate(nodes):
            if node.entry is not None and node.entry.workflows >= 2:
                self._others(node, node.entry, now, unused[at])
        worth: list[float] = self._worth(unused).tolist()
        return worth

    def _worth(self, unused: Floats) -> Floats:
        """What blocks are worth that are not used within each horizon, the last axis, with these probabilities."""
        return hit_density(unused, self._overhead) / self._outlook.timing.unit

    def _newcomers(self, entries: Sequence[PrefixStat | None], now: float) -> list[tuple[float, float]]:
        """First uses a unit of time by workflows that are still to start, and the units from a start to that; for each block.

        Workflows come as a Poisson process; the chance that one uses a block is that of the workflows since it is known, with a
        Gamma prior.
        """
        timing, known = self._outlook.timing, _SHARED_STRENGTH + self._outlook.arrivals
        starts, steps = self._outlook.starts_per_second(now) * timing.unit, timing.cycle / timing.unit
        prior = _SHARED_STRENGTH * self._shared_prior - 1
        return [
            (0.0, 0.0)
            if entry is None
            else (
                starts * (prior + entry.workflows) / (known - entry.arrival),
                steps * entry.step_sum / max(entry.workflows, 1),
            )
            for entry in entries
        ]

    def _newcomers_alone(self, entry: PrefixStat, now: float) -> float:
        """The hit density where nobody else comes, at the last horizon: while uses are rare it grows with the horizon."""
        ((uses, delay),) = self._newcomers((entry,), now)
        if uses == 0.0:
            return 0.0
        hit = -math.expm1(-uses * max(LAST_HORIZON - delay, 0.0))
        return hit / (delay + hit / uses + self._overhead) / self._outlook.timing.unit

    def _others(self, node: Node, entry: PrefixStat, now: float, unused: Floats) -> None:
        """What active workflows make of a shared block that they have not used yet."""
        parent = node.parent
        assert parent is not None
        came = list(accumulate(entry.first))  # workflows that came to it so many steps behind its parent, or sooner
        last = len(came) - 1
        exposed = entry.exposed(self._outlook.arrivals)
        near = list(self._outlook.views) if parent.is_root else [owner.id for owner in parent.owners]
        used = {owner.id for owner in node.owners}
        begun = {} if parent.is_root else {owner.id: segment.touched[0] for owner, segment in parent.owners.items()}
        for name in near:
            if name in used or (view := self._outlook.view(name, now)) is None:
                continue
            behind = view.step - begun.get(name, 0)
            if behind >= last or came[behind] == came[-1]:
                continue
            at = [came[min(behind + edge, last)] for edge in _EDGES]
            still = exposed - at[0] + 1
            assert view.arrival is not None
            unused *= 1.0 - np.array([(after - before) / still for before, after in pairwise(at)]) @ view.arrival
