"""Runs a step on a worker and passes its output on; when the worker is lost, the step goes on at another.

Gateway and worker keep to these rules, so that no token and no character is missing or repeated:

- `run_step` names the output tokens that the client has (`sent`). The worker goes on after them and does not send
  them again. `sampling.max_tokens` counts them, and the seed makes the next tokens the same as on the lost worker.
- Text is different: what could be the start of a stop string is held back, and how much the lost worker held back is unknown
  here. So where `sent` is not empty, the worker decodes it once more and its text starts at the beginning of the output; the
  gateway leaves out as many characters as the client has. If `sent` ends the answer already, the worker sends one event with
  text and no tokens, and then the outcome.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pbkv_cluster.core.background import check_cancelled
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, StepEvent, Tokens
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.inspection.agents import Agents, CallSite
from pbkv_cluster.gateway.inspection.watchers import Watchers
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.load import StepLoad
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed
from pbkv_cluster.gateway.routing.step_link import FailureKind, StepOutcome, StepStream, WorkerFailure
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.step_teller import StepTeller
from pbkv_cluster.store.block_map import WorkerKey

log = logging.getLogger(__name__)

_MAX_REFUSALS = 2  # workers with full queues before the step fails


@dataclass(slots=True)
class _Attempts:
    """The workers that a step has tried in vain."""

    failed: set[WorkerKey] = field(default_factory=set)
    full: int = 0


@dataclass(slots=True)
class Relay:
    """Between front doors and workers."""

    admission: Admission
    pool: WorkerPool
    placement: Placement
    speed: PrefillSpeed
    lengths: OutputLength
    infinite: InfiniteCache
    agents: Agents
    watchers: Watchers
    meter: GatewayMeter
    events: EventReporter
    teller: StepTeller
    contexts: Contexts
    decisions: Decisions
    clock: Clock
    retry_limit: int

    async def run(self, step: Step, spec: StepSpec) -> AsyncIterator[StepEvent]:
        """One Accepted, the output, one Finished; with reason CANCELLED if the workflow ends first.

        Raises:
            PbkvError: the worker refused the step, or too many workers were lost.
        """
        attempts = _Attempts()
        while not step.is_final:
            workers = await self.placement.wait(attempts.failed, step.ended)
            if not workers:
                break
            workflow = spec.workflow
            worker, cached_tokens = await self.placement.choose(workers, spec.prompt.keys, workflow.last_worker, workflow.id)
            check_cancelled()
            if step.is_final:
                break
            if worker.closed:  # it left while the index was asked
                continue
            first = step.worker is None
            stream = self._place(step, spec, worker, cached_tokens)  # in flight while the client gets Accepted
            if first:
                yield Accepted(spec.number, worker.id, spec.prompt.tokens)
            lost: Worker | None = None
            try:
                async for event in self._pass_on(step, spec, worker, stream):
                    yield event
            except WorkerFailure as failure:
                lost = worker if failure.kind is FailureKind.LOST else None
                if not step.is_final:
                    self._judge(step, worker, attempts, failure)
                    step.transition(StepState.ACCEPTED)
            except asyncio.CancelledError:
                # The stream of a cancelled step raises this too: then there is no cancel of the present task.
                check_cancelled()
                if not step.is_final:
                    raise Unavailable("the gateway is stopping") from None
            finally:
                self.teller.ended(spec.workflow, spec.number, bytes(step.sent), lost)
                self.pool.release(worker, step)
        if step.state is StepState.CANCELLED:
            yield Finished(FinishReason.CANCELLED, step.complete(Usage(), self.clock.now()))

    def _place(self, step: Step, spec: StepSpec, worker: Worker, cached_tokens: int) -> StepStream:
        workflow = spec.workflow
        output_tokens = self.lengths.expected(spec.sampling.max_tokens)
        keys = spec.prompt.keys.of(worker.namespace)
        worker.steps.add(step, StepLoad.expected(keys, spec.prompt.tokens, cached_tokens, output_tokens))
        workflow.last_worker = worker.key
        if not workflow.ended:
            self.contexts.note(workflow.id, spec.agent, worker.key, keys)
        if not workflow.ended and (workflow.served_by is None or worker.id not in workflow.served_by):
            self.events.report(workflow, EventKind.STEP_PLACED, worker=worker.id)
        if workflow.served_by is not None:
            workflow.served_by.add(worker.id)
        remote_steps = self.teller.began(
            workflow, spec.number, spec.agent, spec.parent_step, spec.tenant, spec.prompt.packed, worker, bytes(step.sent)
        )
        stream = worker.run_step(
            request_id=f"{workflow.id}/{spec.number}/{step.retries}",
            workflow_id=workflow.id,
            agent=spec.agent,
            step=spec.number,
            parent_step=spec.parent_step,
            tenant=spec.tenant,
            prompt=spec.prompt.packed,
            sampling=spec.sampling,
            sent=bytes(step.sent),
            priority=spec.priority,
            step_graph=workflow.step_graph,
            remote_steps=remote_steps,
            metadata=step.span.metadata(),
            timeout_s=None if step.deadline is None else max(step.deadline - self.clock.now(), 0.0),
        )
        step.place(worker, stream)
        return stream

    async def _pass_on(self, step: Step, spec: StepSpec, worker: Worker, stream: StepStream) -> AsyncIterator[StepEvent]:
        skip = step.sent_chars
        async for event in stream:
            if step.is_final:  # cancelled while the event was on its way
                return
            match event:
                case Tokens():
                    first_output = step.first_token_at is None
                    text = step.add_output(event, skip, self.clock.now())
                    skip = max(skip - len(event.text), 0)
                    if first_output and step.first_token_at is not None:
                        self.infinite.remember(spec.prompt.keys.of(worker.namespace))
                        self.admission.has_output(step)
                    if text or event.packed:
                        yield Tokens(event.packed, text, event.logprobs)
                case StepOutcome():
                    self._finish(step, spec, worker, event)
                    yield Finished(event.reason, event.usage)

    def _finish(self, step: Step, spec: StepSpec, worker: Worker, outcome: StepOutcome) -> None:
        usage = step.complete(outcome.usage, self.clock.now())
        step.hidden = outcome.hidden
        if outcome.reason is not FinishReason.CANCELLED:
            self.speed.add(usage)
            worker.speed.add(usage)
            self.lengths.add(usage)
            site = CallSite(spec.workflow.workload, spec.agent, spec.call_site)
            self.agents.add(site, spec.workflow.id, spec.prompt.packed, usage)
            self.meter.step_finished(usage, spec.workflow.workload, spec.tenant)
            keys, output = spec.prompt.keys, bytes(step.sent)
            self.infinite.remember(keys.of_output(worker.namespace, output))
            if not spec.workflow.ended:
                self.contexts.note(spec.workflow.id, spec.agent, worker.key, keys.of_all(worker.namespace, output))
                of_any_engine = worker.namespace.of_any_engine()
                self.watchers.step(
                    site, spec.workflow.id, spec.prompt.packed, output, lambda: keys.of_all(of_any_engine, output), usage
                )
        self.teller.ended(spec.workflow, spec.number, bytes(step.sent))
        # Before the client gets Finished, so that its next step comes after this one's end in every account.
        step.transition(StepState.FINISHED)

    def _judge(self, step: Step, worker: Worker, attempts: _Attempts, failure: WorkerFailure) -> None:
        """Returns if the step may go on elsewhere.

        Raises:
            PbkvError: it may not; this is for the client.
        """
        attempts.failed.add(worker.key)
        reason = Reason.WORKER_REFUSED if failure.kind is FailureKind.FULL else Reason.WORKER_LOST
        if failure.kind is not FailureKind.REFUSED:
            lost = {"worker": worker.id, "reason": reason.value}
            log.warning("a step goes on elsewhere, if it may: %s", failure.details, extra=lost)
        others = any(each.key not in attempts.failed for each in self.pool.live())
        match failure.kind:
            case FailureKind.FULL:
                self.decisions[Reason.WORKER_REFUSED] += 1
                attempts.full += 1
                if attempts.full < _MAX_REFUSALS and others:
                    return
            case FailureKind.LOST:
                self.decisions[Reason.WORKER_LOST] += 1
                self.pool.lost(worker)
                if self._retry(step):
                    return
                raise Unavailable(
                    f"{step.retries + 1} workers were lost under the step; the last: {failure.details}"
                ) from failure
            case FailureKind.DEFECT if others:
                # Either the worker is broken, or the step breaks any worker: try another one, not the same.
                self.decisions[Reason.WORKER_LOST] += 1
                if self._retry(step):
                    return
        error = failure.taken_error()
        try:
            raise error from failure
        finally:
            del error  # else it keeps this frame, which would keep it, and all that the step has in memory

    def _retry(self, step: Step) -> bool:
        """Takes one of the step's retries; False if there is none left."""
        if step.retries >= self.retry_limit:
            return False
        step.retries += 1
        self.decisions[Reason.STEP_RETRIED] += 1
        return True
