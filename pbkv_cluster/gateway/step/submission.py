"""The submission of a step, from the request to its last event. Every front door calls this."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from pbkv_cluster.core import tokens
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from pbkv_cluster.core.logs.fields import bind
from pbkv_cluster.core.sampling import SamplingOptions, SamplingParams
from pbkv_cluster.core.security.caller import current_caller
from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.step_events import StepEvent
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.worker_pool import ModelLimits, WorkerPool
from pbkv_cluster.gateway.step.admission import Admission
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.relay import Relay
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, StepRequest, TextPrompt, TokenPrompt
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.lifecycle import WorkflowLifecycle
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.rpc import tracing
from pbkv_cluster.rpc.tracing import NO_SPAN, CallMetadata

log = logging.getLogger(__name__)

_MAX_LOGGED_CHARACTERS = 65_536  # of a prompt


@dataclass(slots=True)
class Submission:
    """Checks steps, has them run, and frees what they hold, however they end.

    step = submission.admit(size_bytes)
    try:
        async for event in submission.run(step, request):
            ...
    finally:
        submission.close(step)
    """

    admission: Admission
    workflows: WorkflowLifecycle
    prompts: PromptReader
    pool: WorkerPool
    placement: Placement
    relay: Relay
    infinite: InfiniteCache
    events: EventReporter
    decisions: Decisions
    clock: Clock
    allow_forced_output: bool
    logs_prompts: bool = False

    def admit(self, size_bytes: int, metadata: CallMetadata = None) -> Step:
        """Lets a step in; `close` it when its call is over.

        Args:
            size_bytes: of its request, as it came in.
            metadata: that came with the call, which may have a trace's context.

        Raises:
            ResourceExhausted: too many steps are in flight, or they are too large.
        """
        step = Step(self.clock.now(), self._settle)
        self.admission.admit(step, size_bytes)
        step.span = tracing.start("step", metadata)
        return step

    async def run(self, step: Step, request: StepRequest) -> AsyncIterator[StepEvent]:
        """The events of the step.

        Raises:
            PbkvError: the request is wrong, or the step could not be run.
        """
        timer = self._set_deadline(step, request.timeout_s)
        try:
            spec = await self._read(step, request)
            if not step.is_final:  # closed, or expired, while its request was read
                self._open(step, spec)
                self._log_prompt(request.prompt)
                async for event in self.relay.run(step, spec):
                    yield event
            if step.expired:
                raise DeadlineExceeded(f"the step has not ended within {request.timeout_s:g} s")
        except Exception as error:
            if step.spec is not None:  # else it never was a step, and its client alone is to blame
                log.warning("a step failed: %s", error, extra={"reason": Reason.STEP_FAILED.value})
            step.fail()
            if isinstance(error, ResourceExhausted) and error.retry_after_s is None:
                error.retry_after_s = self.admission.retry_after_s()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            step.cancel()

    def _set_deadline(self, step: Step, timeout_s: float | None) -> asyncio.TimerHandle | None:
        """Has a step end at its deadline, wherever it is by then."""
        if timeout_s is None:
            return None
        step.deadline = step.arrived_at + timeout_s
        return asyncio.get_running_loop().call_later(step.deadline - self.clock.now(), self._expire, step)

    def _expire(self, step: Step) -> None:
        if not step.is_final:
            self.decisions[Reason.STEP_EXPIRED] += 1
            step.expire()

    def close(self, step: Step) -> None:
        """Cancels the step unless it has ended, and frees what it holds at once. Harmless when repeated."""
        step.cancel()

    def _settle(self, step: Step) -> None:
        """Frees what a step holds that has reached a final state, and reports its end."""
        self.admission.release(step)
        self._end_span(step)
        if step.worker is not None:
            self.pool.release(step.worker, step)
        workflow, spec = step.workflow, step.spec
        if workflow is None:
            return
        workflow.running.discard(step)
        if not workflow.ended:
            self.workflows.renew(workflow)
        if spec is None:
            return
        if step.state is StepState.CANCELLED:
            self.decisions[Reason.STEP_CANCELLED] += 1
        elif step.state is StepState.FAILED:
            self.decisions[Reason.STEP_FAILED] += 1
        if not workflow.ended:
            self.events.report(
                workflow,
                EventKind.STEP_FINISHED,
                agent=spec.agent,
                call_site=spec.call_site,
                step=spec.number,
                parent_step=spec.parent_step,
                prompt_tokens=spec.prompt.tokens,
                output_tokens=tokens.count(bytes(step.sent)),
                words=hashed_words(step.beginning),
                hidden=step.hidden,
            )

    @staticmethod
    def _end_span(step: Step) -> None:
        if step.span is NO_SPAN:
            return
        if (spec := step.spec) is not None:
            step.span.set(workflow=spec.workflow.id, step=spec.number, agent=spec.agent, workload=spec.workflow.workload)
            step.span.set(prompt_tokens=spec.prompt.tokens, available_tokens=spec.available_tokens, retries=step.retries)
            step.span.set(
                worker=step.worker.id if step.worker is not None else "", output_tokens=tokens.count(bytes(step.sent))
            )
        if step.worker is not None:
            step.span.set(worker=step.worker.id)
        step.span.end("" if step.state is StepState.FINISHED else step.state.value)

    async def _read(self, step: Step, request: StepRequest) -> StepSpec:
        """Checks a request and fills in what it leaves out."""
        agent = checks.required_name("agent_id", request.agent)
        call_site = checks.name("call_site", request.call_site)
        tenant = current_caller().tenant_of(checks.name("tenant", request.tenant))
        sampling = _complete_sampling(request.sampling, self.allow_forced_output)
        workflow = await self.workflows.find(request.workflow_id)
        if not step.is_final:  # from now on it keeps its workflow open, however long it takes to read its prompt
            step.workflow = workflow
            workflow.running.add(step)
        if request.parent_step is not None and not 0 <= request.parent_step < workflow.steps:
            raise InvalidArgument("parent_step", f"must be an earlier step of the workflow, which has {workflow.steps}")
        tenant = tenant or workflow.tenant
        self.admission.charge(step, tenant, workflow.id)
        limits = await self._limits(step, workflow)
        prompt = await self.prompts.read(request.prompt, limits, tenant)
        self.admission.queue(step, prompt.tokens)
        sampling = _fit_sampling(sampling, prompt.tokens, limits)
        _check_open(workflow)
        number = workflow.steps
        latest_step = number - 1 if number else None
        return StepSpec(
            workflow=workflow,
            number=number,
            agent=agent,
            call_site=call_site,
            parent_step=latest_step if request.parent_step is None else request.parent_step,
            tenant=tenant,
            priority=request.priority,
            prompt=prompt,
            sampling=sampling,
            available_tokens=self.infinite.match(prompt.keys, prompt.tokens),
        )

    async def _limits(self, step: Step, workflow: OpenWorkflow) -> ModelLimits:
        """What the model takes; waits for a first worker, whose entry says it."""
        if (limits := self.pool.limits()) is None:
            await self.placement.wait((), step.ended)
            _check_open(workflow)
            limits = self.pool.limits()
        if limits is None:
            raise Unavailable("no worker is reachable")
        return limits

    def _open(self, step: Step, spec: StepSpec) -> None:
        """Makes the step one of its workflow."""
        workflow = spec.workflow
        step.spec = spec
        workflow.steps += 1
        bind(workflow=workflow.id, step=spec.number, agent=spec.agent)
        self.events.report(
            workflow,
            EventKind.STEP_STARTED,
            agent=spec.agent,
            call_site=spec.call_site,
            step=spec.number,
            parent_step=spec.parent_step,
            prompt_tokens=spec.prompt.tokens,
            pieces=spec.prompt.pieces,
            words=() if spec.number else hashed_words(self.prompts.beginning(spec.prompt)),
        )
        self.workflows.write_soon(workflow)

    def _log_prompt(self, prompt: Prompt) -> None:
        if not self.logs_prompts:
            return
        match prompt:
            case TextPrompt(text):
                shown = text
            case ChatPrompt(messages):
                shown = "\n".join(f"{message.role}: {message.text}" for message in messages)
            case TokenPrompt(packed):
                shown = f"{tokens.count(packed)} token ids"
        log.info("a step begins", extra={"prompt": shown[:_MAX_LOGGED_CHARACTERS]})


def _check_open(workflow: OpenWorkflow) -> None:
    """Raises:
    NotFound: the workflow has ended.
    """
    if workflow.ended:
        raise NotFound(f"workflow {workflow.id!r} has ended")


def _complete_sampling(options: SamplingOptions, allow_forced_output: bool) -> SamplingParams:
    """Complete parameters, the seed included, so that a retry repeats the same tokens.

    Raises:
        InvalidArgument: a value is out of its range.
        FailedPrecondition: forced output, where this server does not replay.
    """
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
