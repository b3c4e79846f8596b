"""What one tenant, or one workflow, has in flight, and what it may have."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from pbkv_cluster.core.config.limits import LimitsConfig
from pbkv_cluster.core.errors import LimitExceeded
from pbkv_cluster.core.ewma import Ewma

_WEIGHT = 0.1  # of the newest step in the mean time that steps take
_FIRST_S = 1.0  # that a step is taken to take, and to wait, before one has ended
_RETRY_MAX_S = 60.0


class Limit(StrEnum):
    """Why a step was refused: the setting whose limit was reached."""

    STEPS = "gateway.max_steps"
    STEP_BYTES = "gateway.max_step_bytes"
    TENANT_STEPS = "limits.tenant_steps"
    TENANT_TOKENS = "limits.tenant_queued_tokens"
    WORKFLOW_STEPS = "limits.workflow_steps"
    WORKFLOW_TOKENS = "limits.workflow_queued_tokens"


class Durations:
    """How long steps take, measured, from which follows when the next one ends."""

    def __init__(self, in_flight_s: float = _FIRST_S, queued_s: float = _FIRST_S) -> None:
        self._in_flight = Ewma(_WEIGHT, initial=in_flight_s)
        self._queued = Ewma(_WEIGHT, initial=queued_s)

    def like(self) -> "Durations":
        """The same, to begin with."""
        return Durations(self._in_flight.value, self._queued.value)

    def ended(self, seconds: float) -> None:
        """A step was in flight for that long."""
        self._in_flight.add(seconds)

    def left_queue(self, seconds: float) -> None:
        """A step waited that long for its first output."""
        self._queued.add(seconds)

    def until_one_ends(self, steps: int) -> float:
        """Seconds in which one of so many steps is expected to end, by Little's law: they end at the rate steps / mean time."""
        return min(self._in_flight.value / max(steps, 1), _RETRY_MAX_S)

    def until_unqueued(self, tokens: int, queued: int) -> float:
        """Seconds in which `tokens` of the `queued` tokens are expected to have left the queue."""
        return min(self._queued.value * min(1.0, tokens / max(queued, 1)), _RETRY_MAX_S)


@dataclass(slots=True)
class Account:
    """One tenant's, or one workflow's, steps in flight."""

    name: str  # in words, for messages
    max_steps: float  # inf: no limit
    max_tokens: float
    limits: tuple[Limit, Limit]  # on steps and on tokens
    durations: Durations
    steps: int = 0
    size_bytes: int = 0  # of their requests
    queued_tokens: int = 0  # of the prompts of those that wait for their first output

    def check_steps(self) -> None:
        """Refuses one more step, before its prompt is read.

        Raises:
            LimitExceeded: it would be one too many, or the queue is full already.
        """
        if self.steps >= self.max_steps:
            raise LimitExceeded(
                f"{self.name} has {self.steps} steps in flight already ({self.limits[0]})",
                self.limits[0],
                self.durations.until_one_ends(self.steps),
            )
        if self.queued_tokens >= self.max_tokens:
            raise self._queue_full(0)

    def check_tokens(self, tokens: int) -> None:
        """Refuses so many tokens more in the queue. Alone, a prompt may have more than the limit: it would never be let in.

        Raises:
            LimitExceeded: they are too many now.
        """
        if self.queued_tokens and self.queued_tokens + tokens > self.max_tokens:
            raise self._queue_full(tokens)

    def _queue_full(self, tokens: int) -> LimitExceeded:
        excess = max(self.queued_tokens + tokens - self.max_tokens, 1)
        return LimitExceeded(
            f"{self.name} has {self.queued_tokens} prompt tokens queued already ({self.limits[1]} is {self.max_tokens:.0f})",
            self.limits[1],
            self.durations.until_unqueued(math.ceil(excess), self.queued_tokens),
        )


@dataclass(slots=True)
class Accounts:
    """The accounts of those that have steps in flight."""

    config: LimitsConfig
    durations: Durations = field(default_factory=Durations)  # of all steps
    _tenants: dict[str, Account] = field(default_factory=dict)
    _workflows: dict[str, Account] = field(default_factory=dict)

    def of(self, tenant: str, workflow: str) -> tuple[Account, ...]:
        """The accounts of a step: its tenant's and its workflow's, if it has one."""
        config = self.config
        owner = self._tenants.get(tenant)
        if owner is None:
            name = f"tenant {tenant!r}" if tenant else "the tenant without a name"
            limits = (Limit.TENANT_STEPS, Limit.TENANT_TOKENS)
            owner = self._account(name, config.tenant_steps, config.tenant_queued_tokens, limits)
        if not workflow:
            return (owner,)
        run = self._workflows.get(workflow)
        if run is None:
            limits = (Limit.WORKFLOW_STEPS, Limit.WORKFLOW_TOKENS)
            run = self._account(f"workflow {workflow!r}", config.workflow_steps, config.workflow_queued_tokens, limits)
        return owner, run

    def enter(self, tenant: str, workflow: str, accounts: tuple[Account, ...]) -> None:
        """Keeps the accounts of a step that has been let in."""
        self._tenants[tenant] = accounts[0]
        if workflow:
            self._workflows[workflow] = accounts[1]

    def leave(self, tenant: str, workflow: str) -> None:
        """Drops the accounts of a step that has ended, unless others are in flight."""
        for accounts, name in ((self._tenants, tenant), (self._workflows, workflow)):
            if name in accounts and not accounts[name].steps:
                del accounts[name]

    def _account(self, name: str, steps: int, tokens: int, limits: tuple[Limit, Limit]) -> Account:
        return Account(name, steps or math.inf, tokens or math.inf, limits, self.durations.like())
