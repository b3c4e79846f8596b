"""The submission of a step, from the request to its last event. Every front door calls this."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import DeadlineExceeded, ResourceExhausted, TryAgain
from pbkv_cluster.core.logs.fields import bind
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.workflow.resumption import Received
from pbkv_cluster.core.workflow.step_events import Finished, FinishReason, GatewayEvent, Tokens
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.peers.peers import HeldElsewhere
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.admission.steps_in_flight import StepsInFlight
from pbkv_cluster.gateway.step.answers import Answer, Answers
from pbkv_cluster.gateway.step.forwarding import Forwarding
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.relay import ReceiverBehind, Relay
from pbkv_cluster.gateway.step.reports import report_finished, report_started
from pbkv_cluster.gateway.step.request import Prompt, StepRequest, shown
from pbkv_cluster.gateway.step.request_reader import RequestReader, WorkflowMoved, check_open, of_caller
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.lifecycle import WorkflowLifecycle
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.rpc import tracing
from pbkv_cluster.rpc.tracing import CallMetadata

log = logging.getLogger(__name__)

_MAX_LOGGED_CHARACTERS = 65_536  # of a prompt
_ATTEMPTS = 8  # to find the gateway that holds the workflow, while it moves


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
    reader: RequestReader
    pool: WorkerPool
    relay: Relay
    forwarding: Forwarding
    answers: Answers
    events: EventReporter
    decisions: Decisions
    clock: Clock
    logs_prompts: bool = False
    in_flight: StepsInFlight = field(default_factory=StepsInFlight, init=False)
    noted: dict[Step, tuple[str, Answer]] = field(default_factory=dict, init=False)  # id and output of each that has an id

    def admit(self, size_bytes: int, metadata: CallMetadata = None) -> Step:
        """Lets a step in, whose request came in as `size_bytes` with the metadata of its call; `close` it when that is over.

        Raises:
            ResourceExhausted: too many steps are in flight, or they are too large.
        """
        step = Step(self.clock.now(), self._settle)
        self.admission.admit(step, size_bytes)
        step.span = tracing.start("step", metadata)
        return step

    async def run(self, step: Step, request: StepRequest, *, passed_on: bool = False) -> AsyncIterator[GatewayEvent]:
        """The events of the step.

        Args:
            step: from `admit`.
            request: what it is to do.
            passed_on: the call comes from another gateway, which takes this one for the holder of the workflow.

        Raises:
            PbkvError: the request is wrong, or the step could not be run.
        """
        timer = self._set_deadline(step, request.timeout_s)
        try:
            async for event in self._serve(step, request, passed_on):
                yield event
            if step.expired:
                raise DeadlineExceeded(f"the step has not ended within {request.timeout_s:g} s")
        except ReceiverBehind:
            raise
        except Exception as error:
            if step.spec is not None:  # else it never was a step, and its client alone is to blame
                log.warning("a step failed: %s", error, extra={"reason": Reason.STEP_FAILED.value})
            # At its deadline only this call gives up; another one of the same step goes on.
            if (noted := self.noted.get(step)) is not None and not step.expired:
                noted[1].fail(error)
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

    async def _serve(self, step: Step, request: StepRequest, passed_on: bool) -> AsyncIterator[GatewayEvent]:
        """Runs the step here, or has the gateway run it that holds the workflow."""
        sampling = self.reader.check(request)
        request = of_caller(request)
        self.in_flight.begin(step, request.workflow_id, request.step_id)
        await self.in_flight.wait(step, request.workflow_id, request.after, self.admission.counts)
        if request.tenant:  # known before its workflow is, which may have to be looked up
            self.admission.charge(step, request.tenant, request.workflow_id)
        received = Received.after(request.resume) if request.step_id else None  # so that it can go on elsewhere
        for _ in range(_ATTEMPTS):
            try:
                workflow = await self.workflows.find(request.workflow_id)
            except HeldElsewhere as elsewhere:
                if passed_on:
                    raise elsewhere.moved() from None
                if received is None:
                    request = replace(request, step_id=request.step_id or uuid.uuid4().hex)
                    sampling = self.reader.check(request)
                    received = Received.after(request.resume)
                self.admission.charge(step, request.tenant or elsewhere.tenant, request.workflow_id)
                events = self.forwarding.run(step, request, elsewhere.holder, received)
            else:
                events = self._run_here(step, workflow, request, sampling, received)
            try:
                async for event in events:
                    yield event
            except WorkflowMoved:
                if passed_on:
                    raise
                self._leave(step)
                continue
            if step.is_final:
                return
        raise TryAgain(f"workflow {request.workflow_id!r} moves from gateway to gateway")

    async def _run_here(
        self,
        step: Step,
        workflow: OpenWorkflow,
        request: StepRequest,
        sampling: SamplingParams,
        received: Received | None,
    ) -> AsyncIterator[GatewayEvent]:
        """Runs a step of a workflow that this gateway holds; `received`: what its client has, if it has an id."""
        self.admission.charge(step, request.tenant or workflow.tenant, workflow.id)
        await self.in_flight.wait(step, workflow.id, request.after)
        if step.is_final:
            return
        check_open(workflow)
        step.workflow = workflow  # from now on it keeps its workflow open, however long it takes to read its prompt
        workflow.running.add(step)
        if received is not None:
            request = replace(request, resume=received.resumption())
        run = self._run_once if request.step_id else self._run
        async for event in run(step, workflow, request, sampling):
            if received is None or received.take(event):
                yield event

    def _leave(self, step: Step) -> None:
        """A step is not one of its workflow yet, and will not be here."""
        if step.workflow is not None:
            step.workflow.running.discard(step)
            if (noted := self.noted.pop(step, None)) is not None:
                noted[1].fail(WorkflowMoved(f"workflow {step.workflow.id!r} has moved"))  # for those who follow
                self.answers.settle(step.workflow, *noted)
        step.workflow = None

    async def _run_once(
        self, step: Step, workflow: OpenWorkflow, request: StepRequest, sampling: SamplingParams
    ) -> AsyncIterator[GatewayEvent]:
        """The events of a step with an id: run by this call, or by another one that has the same id."""
        answer = self.answers.of(workflow, request.step_id)
        received = Received.after(request.resume)
        if request.resume is not None:
            answer.check(request.resume)
        if not answer.is_idle:
            self.decisions[Reason.STEP_JOINED] += 1
        while not answer.is_idle:
            async for output in answer.follow(step, received):
                if received.take(output):
                    yield output
            if step.is_final:
                return
            if answer.finished is not None:
                step.transition(StepState.FINISHED)
                return
        if step.is_final:
            return
        if answer.call is not None or request.resume is not None:
            self.decisions[Reason.STEP_RESUMED] += 1
        self.answers.begin(workflow, request.step_id, answer, step, request.resume)
        self.noted[step] = request.step_id, answer
        async for event in self._run(step, workflow, request, sampling):
            if answer.runs_it is not step:  # it was cancelled, and another call has gone on
                return
            if isinstance(event, Finished) and event.reason is FinishReason.CANCELLED:
                yield event  # the end of this call, not of the step
                return
            up_to_date = (len(received.packed), received.characters) == (len(answer.packed), answer.characters)
            answer.add(event)
            lacking: GatewayEvent | None = event
            if isinstance(event, Tokens) and not up_to_date:
                lacking = answer.missing(received)
            if lacking is not None and received.take(lacking):
                yield lacking

    async def _run(
        self, step: Step, workflow: OpenWorkflow, request: StepRequest, sampling: SamplingParams
    ) -> AsyncIterator[GatewayEvent]:
        noted = self.noted.get(step)
        number = None if noted is None else noted[1].number
        spec = await self.reader.read(step, workflow, request, sampling, number)
        if step.is_final:  # closed while its request was read
            return
        self._open(step, spec, known=number is not None)
        self._log_prompt(request.prompt)
        async for event in self.relay.run(step, spec):
            yield event

    def close(self, step: Step) -> None:
        """Cancels the step unless it has ended, and frees what it holds at once. Harmless when repeated."""
        step.cancel()

    def _settle(self, step: Step) -> None:
        """Frees what a step holds that has reached a final state, and reports its end."""
        self.in_flight.end(step)
        self.admission.release(step)
        step.end_span()
        if step.worker is not None:
            self.pool.release(step.worker, step)
        workflow, spec = step.workflow, step.spec
        if workflow is None:
            return
        if (noted := self.noted.pop(step, None)) is not None:
            noted[1].retries, noted[1].failed_workers = step.retries, step.failed_workers
            self.answers.settle(workflow, *noted)
        workflow.running.discard(step)
        if not workflow.ended:
            self.workflows.renew(workflow)
        if spec is None:
            return
        if step.state is not StepState.FINISHED:
            self.decisions[Reason.STEP_FAILED if step.state is StepState.FAILED else Reason.STEP_CANCELLED] += 1
        if not workflow.ended:
            report_finished(self.events, step, spec)

    def _open(self, step: Step, spec: StepSpec, *, known: bool) -> None:
        """Makes the step one of its workflow; `known`: it is one already, and goes on."""
        workflow = spec.workflow
        step.spec = spec
        bind(workflow=workflow.id, step=spec.number, agent=spec.agent)
        if known:
            return
        if (noted := self.noted.get(step)) is not None:
            noted[1].number = spec.number
        workflow.steps = max(workflow.steps, spec.number + 1)
        report_started(self.events, spec, "" if spec.number else self.prompts.beginning(spec.prompt))
        self.workflows.write_soon(workflow)

    def _log_prompt(self, prompt: Prompt) -> None:
        if self.logs_prompts:
            log.info("a step begins", extra={"prompt": shown(prompt)[:_MAX_LOGGED_CHARACTERS]})
