"""An adversary made of another policy: it evicts first what that policy would keep longest. It puts the guard to the test."""

from collections.abc import Sequence

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy, make_policy
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.record.segment import Segment


class _Negated(ReusePolicy):
    def __init__(self, policy: ReusePolicy) -> None:
        self.retired_first = policy.retired_first
        self.needs_record = policy.needs_record
        self.uses_forecasts = policy.uses_forecasts
        self.learns = policy.learns
        self.drifts = policy.drifts
        self._policy = policy

    def step_began(self, owner: Owner, step: StepIdentity, now: float) -> None:
        self._policy.step_began(owner, step, now)

    def step_queued(self, owner: Owner, number: int, segments: Sequence[Segment], now: float) -> None:
        self._policy.step_queued(owner, number, segments, now)

    def step_ended(self, owner: Owner, now: float) -> None:
        self._policy.step_ended(owner, now)

    def tool_call(self, owner: Owner, call: ToolCall, started: bool, now: float) -> None:
        self._policy.tool_call(owner, call, started, now)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        self._policy.workflow_ended(owner, now)

    def learnt(self, update: AccessUpdate) -> None:
        self._policy.learnt(update)

    def forecast_matters(self, owner: Owner) -> bool:
        return self._policy.forecast_matters(owner)

    def due(self) -> Sequence[str]:
        return self._policy.due()

    def for_shadow(self, config: CacheConfig) -> ReusePolicy:
        return _Negated(self._policy.for_shadow(config))

    def value(self, node: Node, now: float) -> float:
        return -self._policy.value(node, now)


def adversary_of(name: str) -> str:
    """Registers the policy whose values are those of policy `name` negated, and returns its name.

    Retired blocks still go first if they do so under `name`.
    """
    negated = f"negated-{name}"
    if negated not in POLICIES.names():

        def build(config: CacheConfig) -> ReusePolicy:
            return _Negated(make_policy(name, config))

        POLICIES.register(negated)(build)
    return negated
