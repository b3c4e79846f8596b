"""Our own policy: learned reuse, ranked by hit density.

PBKV's access vector assumes that an agent will use every block again that it has ever used. Here the probability of the next
use is learnt from workflows that have ended (`reuse/model`), for each segment of a workflow and each of its next steps, and
combined with when these steps come (`reuse/rank`). The value of a shared block combines all that may use it: workflows that
have used it, active ones that have yet to reach it, and those that will start. So blocks of ended workflows need no rule of
their own.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from pbkv_cluster.cache.policies.base import POLICIES, ForesightPolicy, ReusePolicy
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.model.access_models import AccessModels
from pbkv_cluster.reuse.model.hazard import BIN_STARTS, Floats
from pbkv_cluster.reuse.rank.density import hit_density
from pbkv_cluster.reuse.rank.outlook import Outlook
from pbkv_cluster.reuse.rank.timing import HORIZONS, LAST_HORIZON
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment

_PRIOR_WORKFLOWS = 60.0  # weight of the prior on how many workflows use a block
_ZERO = np.array(0.0)
_SOON = 8.0  # units of time that are soon enough to be prefetched for
_SOON_OF_TOOLS = 0.25  # likewise, of the time for which all users wait for tools: no forecast of their end is much better
_EDGES = (*(BIN_STARTS - 1).tolist(), 30)  # of the bins, in steps


@POLICIES.register("pbkv")
class Pbkv(ForesightPolicy):
    """Evicts first what has the fewest expected hits for each second that it is kept.

    Before anything is learnt all hazards are one half, which orders blocks by the recency of their workflows' steps; the guard
    takes over if that is worse than LRU.
    """

    learns = True
    drifts = True

    def __init__(self, config: CacheConfig) -> None:
        self.outlook = Outlook()
        self._overhead = config.hit_overhead
        self._shared_prior = config.shared_prior
        self._is_shadow = False  # the policy of the cache itself keeps the outlook up to date

    def for_shadow(self, config: CacheConfig) -> ReusePolicy:
        other = type(self)(config)
        other.outlook, other._is_shadow = self.outlook, True
        return other

    @property
    def models(self) -> AccessModels:
        """The access models that values follow from."""
        return self.outlook.models

    def step_began(self, owner: Owner, step: StepIdentity, now: float) -> None:
        if self._is_shadow:
            self.outlook.add_user(owner)
        else:
            self.outlook.step_began(owner, step.agent, now, step.number, step.parent)

    def step_queued(self, owner: Owner, number: int, segments: Sequence[Segment], now: float) -> None:
        if not self._is_shadow:
            self.outlook.step_queued(owner, number, segments)

    def step_ended(self, owner: Owner, now: float) -> None:
        if not self._is_shadow:
            self.outlook.step_ended(owner, now)

    def tool_call(self, owner: Owner, call: ToolCall, started: bool, now: float) -> None:
        if not self._is_shadow:
            self.outlook.tool_call(owner, call, started, now)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        if not self._is_shadow:
            self.outlook.workflow_ended(owner)

    def learnt(self, update: AccessUpdate) -> None:
        if not self._is_shadow:
            self.outlook.models.apply(update)

    def forecast_matters(self, owner: Owner) -> bool:
        return self.outlook.forecast_mattered if self._is_shadow else self.outlook.forecast_matters(owner)

    def due(self) -> list[str]:
        return self.outlook.due

    def halved(self, value: float) -> float:
        return value / 2

    def certain_value(self, now: float) -> float:
        return float(self._density(np.zeros(len(HORIZONS))))

    def soon_used(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        horizons = [min((self.outlook.waited(owner, now) for owner in node.owners), default=0.0) for node in nodes]
        units = np.maximum(np.array(horizons) * (_SOON_OF_TOOLS / self.outlook.timing.unit), _SOON)
        columns = np.minimum(np.searchsorted(HORIZONS, units), len(HORIZONS) - 1)
        soon: list[float] = (1.0 - self._unused(nodes, now)[np.arange(len(nodes)), columns]).tolist()
        return soon

    def value(self, node: Node, now: float) -> float:
        return self.values((node,), now)[0]

    def values(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        # A numpy call costs as much for one node as for many.
        values, rest = dict[int, float](), list[int]()
        for at, node in enumerate(nodes):
            if not node.owners and node.entry is not None and node.entry.workflows < 2:
                values[at] = self.value_to_new_workflows(node.entry, now)
            else:
                rest.append(at)
        if rest:
            values.update(zip(rest, self._values([nodes[at] for at in rest], now), strict=True))
        return [values[at] for at in range(len(nodes))]

    def _values(self, nodes: Sequence[Node], now: float) -> list[float]:
        values: list[float] = self._density(self._unused(nodes, now)).tolist()
        return values

    def _unused(self, nodes: Sequence[Node], now: float) -> Floats:
        """The probability that nodes are not used within each horizon, the last axis."""
        unused = self.outlook.unused([node.owners for node in nodes], now)  # a row for each node
        uses, delays = np.array(self.first_uses([node.entry for node in nodes], now)).T[:, :, None]
        after = HORIZONS - delays
        np.maximum(after, _ZERO, out=after)
        after *= -uses
        unused *= np.exp(after, out=after)
        for at, node in enumerate(nodes):
            if node.entry is not None and node.entry.workflows >= 2:
                self._multiply_others(node, node.entry, now, unused[at])
        return unused

    def _density(self, unused: Floats) -> Floats:
        """Hits a second for blocks that are not used within each horizon, the last axis, with these probabilities."""
        return hit_density(unused, self._overhead) / self.outlook.timing.unit

    def first_uses(self, stats: Sequence[PrefixStat | None], now: float) -> list[tuple[float, float]]:
        """Uses by workflows that have not started yet: first uses of each block a unit of time, and units from start to use.

        Workflows start as a Poisson process. The probability that one uses a block is the share of workflows that did since the
        block is known, with a Gamma prior.
        """
        timing, known = self.outlook.timing, _PRIOR_WORKFLOWS + self.outlook.workflow_count
        starts, steps = self.outlook.starts_per_second(now) * timing.unit, timing.cycle / timing.unit
        prior = _PRIOR_WORKFLOWS * self._shared_prior - 1
        return [
            (0.0, 0.0)
            if stat is None
            else (
                starts * (prior + stat.workflows) / (known - stat.workflows_before),
                steps * stat.step_sum / max(stat.workflows, 1),
            )
            for stat in stats
        ]

    def value_to_new_workflows(self, stat: PrefixStat, now: float) -> float:
        """The value of a block that only workflows use that have not started yet.

        It is the hit density at the last horizon: while uses are rare it grows with the horizon.
        """
        ((uses, delay),) = self.first_uses((stat,), now)
        if uses == 0.0:
            return 0.0
        hit = -math.expm1(-uses * max(LAST_HORIZON - delay, 0.0))
        return hit / (delay + hit / uses + self._overhead) / self.outlook.timing.unit

    def _multiply_others(self, node: Node, stat: PrefixStat, now: float, unused: Floats) -> None:
        """Multiplies `unused` by the probability that no active workflow uses a shared block that it has not used yet."""
        parent = node.parent
        assert parent is not None
        reached = list(accumulate(stat.offsets))  # workflows that used it at most so many steps after its parent
        last = len(reached) - 1
        at_risk = stat.at_risk(self.outlook.workflow_count)
        active, used = self.outlook.workflows, {owner.id for owner in node.owners}
        if parent.is_root:
            first_use = dict[str, int]()
            others = [outlook for name, outlook in active.items() if name not in used]
        else:
            first_use = {owner.id: segment.used_at[0] for owner, segment in parent.owners.items()}
            others = [active[name] for name in first_use if name not in used and name in active]
        self.outlook.refresh(others, now)
        chances, arrivals = list[list[float]](), list[Floats]()  # of a first use in each bin; of the bins' steps
        for other in others:
            since = other.step - first_use.get(other.id, 0)
            if since >= last or reached[since] == reached[-1]:
                continue
            at = [reached[min(since + edge, last)] for edge in _EDGES]
            left = at_risk - at[0] + 1
            assert other.arrival is not None
            chances.append([(after - before) / left for before, after in pairwise(at)])
            arrivals.append(other.arrival)
        if chances:  # all at once: on so few numbers, a call costs more than the work
            hit = np.matmul(np.array(chances)[:, None, :], np.array(arrivals))[:, 0]
            np.multiply.reduce(np.concatenate([unused[None], 1.0 - hit]), axis=0, out=unused)
