"""Reads a step's request: checks it and fills in what it leaves out."""

from dataclasses import dataclass, replace

from xxhash import xxh3_64_intdigest

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument, NotFound, TryAgain, Unavailable
from pbkv_cluster.core.sampling import SamplingOptions, SamplingParams
from pbkv_cluster.core.security.caller import current_caller
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.worker_pool import ModelLimits, WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.request import StepRequest
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow

_MAX_STEPS_AHEAD = 4096  # that a lost gateway may have started after it had written the workflow's entry for the last time
MAX_AFTER = 64  # steps that one may name to begin after


class WorkflowMoved(TryAgain):
    """Another gateway has taken the workflow over while the request was read. Nothing has been done for the step."""


@dataclass(slots=True)
class RequestReader:
    """Makes the `StepSpec` of a step."""

    admission: Admission
    prompts: PromptReader
    pool: WorkerPool
    placement: Placement
    infinite: InfiniteCache
    allow_forced_output: bool

    def check(self, request: StepRequest) -> SamplingParams:
        """What can be checked without the workflow. Returns complete parameters.

        Raises:
            InvalidArgument: a field is out of its range.
            FailedPrecondition: forced output, where this server does not replay.
        """
        checks.required_name("agent_id", request.agent)
        checks.name("call_site", request.call_site)
        checks.name("tenant", request.tenant)
        checks.name("step_id", request.step_id)
        if request.resume is not None or request.receiver is not None:
            checks.not_empty("step_id", request.step_id)
        if len(request.after) > MAX_AFTER:
            raise InvalidArgument("after", f"at most {MAX_AFTER} steps, got {len(request.after)}")
        return _complete_sampling(request.sampling, request.step_id, self.allow_forced_output)

    async def read(
        self, step: Step, workflow: OpenWorkflow, request: StepRequest, sampling: SamplingParams, number: int | None
    ) -> StepSpec:
        """Fills in what the request leaves out.

        Args:
            step: that is to run.
            workflow: its.
            request: that `check` has checked.
            sampling: from `check`.
            number: that the step has in the workflow, if it has run here before.

        Raises:
            InvalidArgument: a field is out of its range.
            NotFound: the workflow has ended.
            LimitExceeded: its tenant, or its workflow, has too many tokens queued.
            Unavailable: there is no worker.
        """
        if request.parent_step is not None and not 0 <= request.parent_step < workflow.steps:
            raise InvalidArgument("parent_step", f"must be an earlier step of the workflow, which has {workflow.steps}")
        tenant = request.tenant or workflow.tenant
        limits = await self._limits(step, workflow)
        prompt = await self.prompts.read(request.prompt, limits, tenant)
        self.admission.queue(step, prompt.tokens)
        sampling = _fit_sampling(sampling, prompt.tokens, limits)
        _check_sent(bytes(step.sent), sampling, limits)
        check_open(workflow)
        number = _number(request, workflow) if number is None else number
        latest_step = number - 1 if number else None
        return StepSpec(
            workflow=workflow,
            number=number,
            agent=request.agent,
            call_site=request.call_site,
            parent_step=latest_step if request.parent_step is None else request.parent_step,
            tenant=tenant,
            priority=request.priority,
            prompt=prompt,
            sampling=sampling,
            available_tokens=max(self.infinite.match(prompt.keys.of(each), prompt.tokens) for each in limits.namespaces),
            # A step that goes on from some output has text to leave out, of which the worker knows nothing.
            receiver=None if step.sent or step.sent_chars else request.receiver,
        )

    async def _limits(self, step: Step, workflow: OpenWorkflow) -> ModelLimits:
        """What the model takes; waits for a first worker, whose entry says it."""
        if (limits := self.pool.limits()) is None:
            await self.placement.wait((), step.ended)
            check_open(workflow)
            limits = self.pool.limits()
        if limits is None:
            raise Unavailable("no worker is reachable")
        return limits


def of_caller(request: StepRequest) -> StepRequest:
    """The request with the tenant of its call, and with the id that all of the cluster knows the tenant's workflow by.

    Raises:
        PermissionDenied: the request names another tenant.
    """
    caller = current_caller()
    workflow_id = of_tenant(request.workflow_id, caller.tenant)
    return replace(request, workflow_id=workflow_id, tenant=caller.tenant_of(request.tenant))


def check_open(workflow: OpenWorkflow) -> None:
    """Raises:
    NotFound: the workflow has ended.
    WorkflowMoved: another gateway holds it by now.
    """
    if workflow.moved:
        raise WorkflowMoved(f"workflow {workflow.id!r} has moved to another gateway: try again")
    if workflow.ended:
        raise NotFound(f"workflow {workflow.id!r} has ended")


def _number(request: StepRequest, workflow: OpenWorkflow) -> int:
    """The number of a step that has not run here yet: the next one, or the one that a lost gateway has given it."""
    if request.resume is None or request.resume.step is None:
        return workflow.steps
    most = workflow.steps + _MAX_STEPS_AHEAD
    if request.resume.step > most:
        raise InvalidArgument("resume.step", f"must be at most {most}, got {request.resume.step}")
    return request.resume.step


def _complete_sampling(options: SamplingOptions, step_id: str, allow_forced_output: bool) -> SamplingParams:
    """Complete parameters, the seed included, so that a retry repeats the same tokens: on any gateway, if the step has an id.

    Raises:
        InvalidArgument: a value is out of its range.
        FailedPrecondition: forced output, where this server does not replay.
    """
    if step_id and options.seed is None:
        options = replace(options, seed=xxh3_64_intdigest(step_id.encode()))
    params = options.complete()
    if params.forced_output is not None and not allow_forced_output:
        raise FailedPrecondition("sampling.forced_output: this server does not replay (engine.allow_forced_output)")
    return params


def _fit_sampling(params: SamplingParams, prompt_tokens: int, limits: ModelLimits) -> SamplingParams:
    """Parameters that the model can follow after a prompt of `prompt_tokens`.

    `max_tokens` is cut to what fits in the context: the answer then ends with LENGTH, as at any other limit, and a client need
    not know how long its prompt is in tokens.

    Raises:
        InvalidArgument: forced output holds ids outside the vocabulary.
    """
    max_tokens = min(params.max_tokens, limits.max_context_tokens - prompt_tokens)
    forced = params.forced_output
    if forced is not None:
        tokens.check_ids("sampling.forced_output", forced, limits.vocab_size)
        forced = forced[: max_tokens * tokens.TOKEN_BYTES]
    return replace(params, max_tokens=max_tokens, forced_output=forced)


def _check_sent(sent: bytes, sampling: SamplingParams, limits: ModelLimits) -> None:
    """The output from which a step goes on.

    Raises:
        InvalidArgument: it cannot be this step's.
    """
    if not sent:
        return
    tokens.check_ids("resume.token_ids", sent, limits.vocab_size)
    if tokens.count(sent) > sampling.max_tokens:
        raise InvalidArgument("resume.token_ids", f"more than the {sampling.max_tokens} that the step may have")
