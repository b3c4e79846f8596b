"""What a reuse policy is, and the registry of policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.registry import Registry
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.record.segment import Segment

# Seconds by which the forecast for a step may arrive before the step is admitted. An older one is about an earlier step.
_GRACE_S = 5.0


class ReusePolicy(ABC):
    """Gives each node a value. The node with the lowest value is evicted first; ties go to the least recently used.

    The value of a node may change only when something happens to one of its owners: a step begins or ends, a forecast arrives,
    the workflow ends. Only then are nodes ranked anew. Time alone must not change a value, unless `drifts` is set.

    A policy that needs to know what happens overrides the hooks. Each is called before the values that it may change are
    computed, and those of its workflow's nodes are computed anew.
    """

    retired_first = False  # retired nodes are evicted before all others
    steady = False  # values depend on the uses of a node alone: neither hooks nor forecasts change them
    drifts = False  # values also change with time and with other workflows; nodes are ranked when a victim is needed
    positional = False  # the value of a node depends on which of its blocks are left
    learns = False  # it uses what is learnt from ended workflows
    needs_record = True  # values depend on `Node.output`, on `Owner.record`, or on the segments in `Node.owners`
    uses_forecasts = True  # values depend on `Owner.forecast`; without such a policy a simulation makes no forecasts

    def __init__(self, config: CacheConfig) -> None:
        del config

    def step_began(self, owner: Owner, step: StepIdentity, now: float) -> None:  # noqa: B027  # a hook
        """A step of a workflow was admitted. Called again when the step is admitted again after a preemption."""

    def step_queued(self, owner: Owner, number: int, segments: Sequence[Segment], now: float) -> None:  # noqa: B027  # a hook
        """A step waits for admission whose prompt matches these segments of its workflow. None of them: it was withdrawn."""

    def step_ended(self, owner: Owner, now: float) -> None:  # noqa: B027  # a hook
        """A step of a workflow has ended, or was preempted."""

    def tool_call(self, owner: Owner, call: ToolCall, started: bool, now: float) -> None:  # noqa: B027  # a hook
        """A workflow has begun to wait for a tool (`started`), or no longer does."""

    def workflow_ended(self, owner: Owner, now: float) -> None:  # noqa: B027  # a hook
        """A workflow has ended. It owns no nodes any more."""

    def learnt(self, update: AccessUpdate) -> None:  # noqa: B027  # a hook
        """Something has been learnt from ended workflows. For policies that set `learns`."""

    def forecast_matters(self, owner: Owner) -> bool:
        """Whether the forecast that has just arrived for a workflow, `Owner.forecast`, changes the values of its nodes."""
        return self.uses_forecasts

    def due(self) -> Sequence[str]:
        """Ids of workflows whose nodes are to be ranked anew because time has passed. Called after each `step_began`."""
        return ()

    def for_shadow(self, config: CacheConfig) -> ReusePolicy:
        """A policy like this one for a shadow, which sees the same steps. It may share the state of this one."""
        return type(self)(config)

    @abstractmethod
    def value(self, node: Node, now: float) -> float:
        """The value of a node, on a scale of the policy's own.

        Args:
            node: a candidate for eviction.
            now: seconds, on the clock of `Node.last_access` and `Owner.forecast_at`.
        """

    def values(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        """The values of several nodes. Overridden by policies for which that is cheaper than one by one."""
        return [self.value(node, now) for node in nodes]


class ForesightPolicy(ReusePolicy):
    """A policy whose values are more than an order: they say by how much a node is worth more, and which is used soon.

    Under others, blocks are prefetched for queued steps alone.
    """

    @abstractmethod
    def halved(self, value: float) -> float:
        """The value of what is worth half as much."""

    @abstractmethod
    def certain_value(self, now: float) -> float:
        """The value of a node that is certain to be used at once."""

    @abstractmethod
    def soon_used(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        """The expected uses of nodes in the next step, or very soon."""


POLICIES: Registry[ReusePolicy] = Registry("cache.policy")


def current_forecast(owner: Owner) -> Forecast | None:
    """The latest forecast of a workflow, unless it is 5 s or more older than the workflow's latest step; else None."""
    if owner.forecast is None or owner.forecast_at < owner.active_at - _GRACE_S:
        return None
    return owner.forecast


def make_policies(tiers: int, config: CacheConfig) -> list[ReusePolicy]:
    """The policies that a configuration names, one for each of so many tiers. Tiers under the same policy share one object.

    Raises:
        InvalidArgument: there is no such policy.
    """
    first = make_policy(config.policy, config)
    if config.host_policy in ("", config.policy):
        return [first] * tiers
    return [first] + [make_policy(config.host_policy, config, "cache.host_policy")] * (tiers - 1)


def make_policy(name: str, config: CacheConfig, field: str = "cache.policy") -> ReusePolicy:
    """Makes the policy called `name`.

    Args:
        name: of the policy, or package.module:Class.
        config: parameters of all policies.
        field: of the configuration that holds the name, for the error.

    Raises:
        InvalidArgument: there is no such policy.
    """
    import pbkv_cluster.cache.policies  # registers the policies  # noqa: F401

    try:
        return POLICIES.get(name)(config)
    except InvalidArgument as error:
        raise InvalidArgument(field, error.problem) from error
