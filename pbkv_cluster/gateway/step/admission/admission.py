"""The bounds on steps in flight: of all, of each tenant and of each workflow."""

from collections import Counter
from dataclasses import dataclass

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config.limits import LimitsConfig
from pbkv_cluster.core.errors import LimitExceeded
from pbkv_cluster.core.fairness.fair_room import has_fair_room
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.step.admission.limits import Account, Accounts, Limit
from pbkv_cluster.gateway.step.step import Step


@dataclass(slots=True)
class _Held:
    """What a step counts for."""

    size_bytes: int  # of its request
    tenant: str = ""
    workflow: str = ""
    accounts: tuple[Account, ...] = ()  # of tenant and workflow, once they are known
    queued_tokens: int = 0  # of its prompt, until it has output


class Admission:
    """Lets steps in, each in up to three stages, the cheapest first: the call, its tenant and workflow, its prompt's tokens.

    At most `max_steps` are in flight at a time, with requests of at most `max_bytes` bytes together; one tenant alone leaves
    some of that to others (`core.fairness.fair_room`).
    """

    def __init__(self, max_steps: int, max_bytes: int, limits: LimitsConfig, decisions: Decisions, clock: Clock) -> None:
        self._max_steps = max_steps
        self._max_bytes = max_bytes
        self._decisions = decisions
        self._clock = clock
        self._accounts = Accounts(limits)
        self._steps: dict[Step, _Held] = {}
        self._bytes = 0
        self.refused: Counter[Limit] = Counter()

    def __len__(self) -> int:
        return len(self._steps)

    def admit(self, step: Step, size_bytes: int) -> None:
        """Lets a step in.

        Args:
            step: that is to run.
            size_bytes: of its request.

        Raises:
            LimitExceeded: too many steps are in flight, or they are too large.
        """
        if len(self._steps) >= self._max_steps:
            raise self._full(f"{self._max_steps} steps are in flight already ({Limit.STEPS})", Limit.STEPS)
        if self._bytes + size_bytes > self._max_bytes:
            raise self._full(
                f"{size_bytes} bytes are too many: steps in flight have {self._bytes} of {self._max_bytes} "
                f"({Limit.STEP_BYTES})",
                Limit.STEP_BYTES,
            )
        self._steps[step] = _Held(size_bytes)
        self._bytes += size_bytes

    @property
    def running_here(self) -> int:
        """Steps in flight that no other gateway runs."""
        return sum(not step.runs_elsewhere for step in self._steps)

    def charge(self, step: Step, tenant: str, workflow: str) -> None:
        """Counts a step to its tenant and its workflow, before its prompt is read. Does nothing if it is counted, or over.

        Raises:
            LimitExceeded: one of them has too many steps in flight, or too many tokens queued.
        """
        if (held := self._steps.get(step)) is None or held.accounts:
            return
        accounts = self._accounts.of(tenant, workflow)
        try:
            self._check_share(accounts[0], held)
            for account in accounts:
                account.check_steps()
        except LimitExceeded as error:
            raise self._refusal(error) from None
        self._accounts.enter(tenant, workflow, accounts)
        held.tenant, held.workflow, held.accounts = tenant, workflow, accounts
        for account in accounts:
            account.steps += 1
            account.size_bytes += held.size_bytes

    def counts(self, step: Step) -> bool:
        """Whether a step counts to its tenant and its workflow."""
        return (held := self._steps.get(step)) is not None and bool(held.accounts)

    def queue(self, step: Step, prompt_tokens: int) -> None:
        """Counts the tokens of a step's prompt, until the step has output. Does nothing if the step is over.

        Raises:
            LimitExceeded: its tenant or workflow has too many queued already.
        """
        if (held := self._steps.get(step)) is None:
            return
        self._unqueue(held)  # its prompt may have been read before, if its workflow has come back to this gateway
        for account in held.accounts:
            try:
                account.check_tokens(prompt_tokens)
            except LimitExceeded as error:
                raise self._refusal(error) from None
        held.queued_tokens = prompt_tokens
        for account in held.accounts:
            account.queued_tokens += prompt_tokens

    def has_output(self, step: Step) -> None:
        """A step has its first output: its prompt is no longer queued. Harmless when repeated."""
        held = self._steps.get(step)
        if held is not None and held.queued_tokens:
            self._unqueue(held)
            waited = self._clock.now() - step.arrived_at
            for durations in (self._accounts.durations, *(account.durations for account in held.accounts)):
                durations.left_queue(waited)

    def release(self, step: Step) -> None:
        """A step is over. Harmless when repeated."""
        held = self._steps.pop(step, None)
        if held is None:
            return
        self._bytes -= held.size_bytes
        if not held.accounts:
            return
        self._unqueue(held)
        took = self._clock.now() - step.arrived_at
        self._accounts.durations.ended(took)
        for account in held.accounts:
            account.steps -= 1
            account.size_bytes -= held.size_bytes
            account.durations.ended(took)
        self._accounts.leave(held.tenant, held.workflow)

    def retry_after_s(self) -> float:
        """Seconds in which the next step in flight is expected to end."""
        return self._accounts.durations.until_one_ends(len(self._steps))

    @staticmethod
    def _unqueue(held: _Held) -> None:
        for account in held.accounts:
            account.queued_tokens -= held.queued_tokens
        held.queued_tokens = 0

    def _check_share(self, tenant: Account, held: _Held) -> None:
        """Leaves room for other tenants; the step itself does not count yet."""
        wait = tenant.durations.until_one_ends(tenant.steps)
        if not has_fair_room(tenant.steps, len(self._steps) - 1, self._max_steps):
            message = f"{tenant.name} has {tenant.steps} of {len(self._steps) - 1} steps in flight, and leaves room to others"
            raise LimitExceeded(f"{message} ({Limit.STEPS})", Limit.STEPS, wait)
        if not has_fair_room(tenant.size_bytes, self._bytes - held.size_bytes, self._max_bytes):
            message = f"steps of {tenant.name} have {tenant.size_bytes} bytes in flight, and leave room to others"
            raise LimitExceeded(f"{message} ({Limit.STEP_BYTES})", Limit.STEP_BYTES, wait)

    def _full(self, problem: str, limit: Limit) -> LimitExceeded:
        return self._refusal(LimitExceeded(problem, limit, self.retry_after_s()))

    def _refusal(self, error: LimitExceeded) -> LimitExceeded:
        self._decisions[Reason.STEP_REFUSED] += 1
        self.refused[Limit(error.limit)] += 1
        return error
