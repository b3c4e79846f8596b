"""The contract of a reuse policy, and the registry of policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.registry import Registry
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.record.segment import Segment

# The forecast that a step sets off can come before the step is admitted. One older than this is about an earlier step.
_GRACE_S = 5.0


class ReusePolicy(ABC):
    """What a cached block is worth. The lowest value is evicted first; ties go to the least recently used.

    The value of a node may change only when one of its workflows does (a step begins or ends, a forecast comes, the workflow
    ends), not with time alone, unless it drifts: the eviction queue is re-keyed then and only then. One that has to know what
    happens overrides the hooks; each is called before the values that it may change are asked for, and those of its workflow
    are asked for anew.
    """

    retired_first = False  # nodes that no active workflow holds go before all others
    steady = False  # values follow the uses of nodes alone: neither hooks nor forecasts change them
    drifts = False  # values also change with time and with other workflows; nodes are ranked when a victim is needed
    positional = False  # which of a node's blocks are left changes its value
    learns = False  # it wants what is learnt from workflows that have ended
    needs_history = True  # values rest on `Node.owners` beyond who they are, on `Node.output` or on `Owner.record`
    heeds_forecasts = True  # without it values must not rest on `Owner.forecast`, and a simulation makes no forecasts

    def __init__(self, config: CacheConfig) -> None:
        del config

    def step_began(self, owner: Owner, step: int, agent: str, now: float) -> None:  # noqa: B027  # a hook
        """A step of a workflow was admitted; again if it was preempted meanwhile."""

    def step_queued(self, owner: Owner, segments: Sequence[Segment], now: float) -> None:  # noqa: B027  # a hook
        """A step waits for admission whose prompt goes along these segments of its workflow; none: it was withdrawn."""

    def step_ended(self, owner: Owner, now: float) -> None:  # noqa: B027  # a hook
        """The step that began last has ended, or was preempted."""

    def workflow_ended(self, owner: Owner, now: float) -> None:  # noqa: B027  # a hook
        """A workflow has ended; none of its nodes is its own any more."""

    def learnt(self, update: AccessUpdate) -> None:  # noqa: B027  # a hook
        """A learner has made something of workflows that have ended. Only where `learns` is set."""

    def heeds(self, owner: Owner) -> bool:
        """Whether the forecast that has just come for a workflow, `Owner.forecast`, changes what its nodes are worth."""
        return self.heeds_forecasts

    def due(self) -> Sequence[str]:
        """Ids of workflows whose nodes time alone has made worth something else; asked for when a step has begun."""
        return ()

    def twin(self, config: CacheConfig) -> ReusePolicy:
        """A policy like this one, for a shadow of the cache that sees the same steps; it may share what this one knows."""
        return type(self)(config)

    @abstractmethod
    def value(self, node: Node, now: float) -> float:
        """The worth of the blocks of `node`, on a scale of the policy's own.

        Args:
            node: a candidate for eviction.
            now: seconds on the clock that `Node.last_access` and `Owner.forecast_at` were read from.
        """

    def values(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        """The worth of each of some nodes. To be overridden where together they cost less."""
        return [self.value(node, now) for node in nodes]


POLICIES: Registry[ReusePolicy] = Registry("cache.policy")


def current_forecast(owner: Owner) -> Forecast | None:
    """The forecast of where a workflow goes from its present step; None if nobody has made one."""
    if owner.forecast is None or owner.forecast_at < owner.active_at - _GRACE_S:
        return None
    return owner.forecast


def make_policy(name: str, config: CacheConfig, field: str = "cache.policy") -> ReusePolicy:
    """The policy called `name`, with the parameters it takes from `config`.

    Args:
        name: of the policy, or package.module:Class.
        config: its parameters.
        field: that the name comes from, for the error.

    Raises:
        InvalidArgument: there is no such policy.
    """
    import pbkv_cluster.cache.policies  # registers the policies  # noqa: F401

    try:
        return POLICIES.get(name)(config)
    except InvalidArgument as error:
        raise InvalidArgument(field, error.problem) from error
