"""Places a step on a worker and passes its output on; when the worker is lost, the step goes on at another.

Gateway and worker keep to these rules, so that no token and no character is missing or repeated:

- `run_step` names the output tokens that the client has (`sent`). The worker goes on after them and does not send
  them again. `sampling.max_tokens` counts them, and the seed makes the next tokens the same as on the lost worker.
- Text is different: what could be the start of a stop string is held back, and how much the lost worker held back is unknown
  here. So where `sent` is not empty, the worker decodes it once more and its text starts at the beginning of the output; the
  gateway leaves out as many characters as the client has. If `sent` ends the answer already, the worker sends one event with
  text and no tokens, and then the outcome.
- Where the step's receiver is connected to the worker, the output goes there, from Accepted to Finished, and the gateway is
  told of it. If the worker is lost then, only the client knows what it has, and goes on with the step (`ReceiverBehind`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pbkv_cluster.core.background import check_cancelled
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import TryAgain, Unavailable
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.step_events import (
    Accepted,
    Finished,
    FinishReason,
    GatewayEvent,
    HandedOver,
    Invitation,
    Tokens,
)
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.inspection.agents import Agents, CallSite
from pbkv_cluster.gateway.inspection.watchers import Watchers
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.load import StepLoad
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed
from pbkv_cluster.gateway.routing.step_link import FailureKind, StepOutcome, StepStream, Ticket, WorkerFailure
from pbkv_cluster.gateway.routing.worker import Direct, Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.step_teller import StepTeller

log = logging.getLogger(__name__)

_MAX_REFUSALS = 2  # workers with full queues before the step fails


class ReceiverBehind(TryAgain):
    """The worker, or the way from it to the client, was lost under a step whose output went there. The client goes on with it:
    the step is no failure.
    """


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

    async def run(self, step: Step, spec: StepSpec) -> AsyncIterator[GatewayEvent]:
        """One Accepted, the output, one Finished; with reason CANCELLED if the workflow ends first.

        Raises:
            PbkvError: the worker refused the step, or too many workers were lost.
        """
        greeted = False
        while not step.is_final:
            workers = await self.placement.wait(step.failed_workers, step.ended)
            if not workers:
                break
            workflow = spec.workflow
            worker, cached_tokens = await self.placement.choose(
                workers, spec.prompt.keys, workflow.last_worker, workflow.id, spec.agent
            )
            check_cancelled()
            if step.is_final:
                break
            if worker.closed:  # it left while the index was asked
                continue
            accepted = Accepted(spec.number, worker.id, spec.prompt.tokens)
            # What a relayed attempt has sent comes again from the next worker, and only the gateway knows what to leave out.
            has_sent = bool(step.sent or step.sent_chars)
            may_be_direct = spec.receiver is not None and bool(worker.entry.output_address) and not has_sent
            stream = self._place(step, spec, worker, cached_tokens, may_be_direct)  # in flight while the client gets Accepted
            if not greeted and not may_be_direct:
                greeted = True
                yield accepted
            lost: Worker | None = None
            try:
                async for event in self._pass_on(step, spec, worker, stream):
                    may_be_direct = may_be_direct and isinstance(event, HandedOver)
                    if not greeted:
                        greeted = True
                        yield HandedOver(accepted) if may_be_direct else accepted
                    yield event
            except WorkerFailure as failure:
                lost = worker if failure.kind is FailureKind.LOST else None
                if not step.is_final:
                    self._judge(step, worker, failure)
                    if may_be_direct and failure.kind is not FailureKind.FULL:
                        raise ReceiverBehind(failure.details) from failure
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

    def _place(self, step: Step, spec: StepSpec, worker: Worker, cached_tokens: int, may_be_direct: bool) -> StepStream:
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
            direct=self._direct(step, spec) if may_be_direct else None,
            metadata=step.span.metadata(),
            timeout_s=None if step.deadline is None else max(step.deadline - self.clock.now(), 0.0),
        )
        step.place(worker, stream)
        return stream

    def _direct(self, step: Step, spec: StepSpec) -> Direct:
        assert spec.receiver is not None
        return Direct(spec.receiver, self.clock.now() - step.arrived_at, spec.available_tokens, step.retries)

    async def _pass_on(self, step: Step, spec: StepSpec, worker: Worker, stream: StepStream) -> AsyncIterator[GatewayEvent]:
        skip = step.sent_chars
        direct = False
        async for event in stream:
            if step.is_final:  # cancelled while the event was on its way
                return
            match event:
                case Tokens():
                    text = self._note_output(step, spec, worker, event, skip)
                    skip = max(skip - len(event.text), 0)
                    if text or event.packed:
                        yield Tokens(event.packed, text, event.logprobs)
                case HandedOver(Tokens() as output):
                    direct = True
                    self._note_output(step, spec, worker, output, 0)
                    yield event
                case Ticket():
                    yield Invitation(worker.entry.output_address, event.value, spec.tenant)
                case StepOutcome():
                    self._finish(step, spec, worker, event)
                    finished = Finished(event.reason, event.usage)
                    if direct:
                        self.decisions[Reason.STEP_DIRECT] += 1
                    yield HandedOver(finished) if direct else finished

    def _note_output(self, step: Step, spec: StepSpec, worker: Worker, output: Tokens, skip_chars: int) -> str:
        """Notes output that the client gets; returns its text without the `skip_chars` that the client has already."""
        first_output = step.first_token_at is None
        text = step.add_output(output, skip_chars, self.clock.now())
        if first_output and step.first_token_at is not None:
            self.infinite.remember(spec.prompt.keys.of(worker.namespace))
            self.admission.has_output(step)
        return text

    def _finish(self, step: Step, spec: StepSpec, worker: Worker, outcome: StepOutcome) -> None:
        usage = step.complete(outcome.usage, self.clock.now())
        step.hidden = outcome.hidden
        if outcome.speeds is not None:
            worker.loading.measured(outcome.speeds)
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

    def _judge(self, step: Step, worker: Worker, failure: WorkerFailure) -> None:
        """Returns if the step may go on elsewhere.

        Raises:
            PbkvError: it may not; this is for the client.
        """
        if failure.kind is FailureKind.RECEIVER_LOST:
            return
        step.failed_workers.add(worker.key)
        reason = Reason.WORKER_REFUSED if failure.kind is FailureKind.FULL else Reason.WORKER_LOST
        if failure.kind is not FailureKind.REFUSED:
            lost = {"worker": worker.id, "reason": reason.value}
            log.warning("a step goes on elsewhere, if it may: %s", failure.details, extra=lost)
        others = any(each.key not in step.failed_workers for each in self.pool.live())
        match failure.kind:
            case FailureKind.FULL:
                self.decisions[Reason.WORKER_REFUSED] += 1
                step.refusals += 1
                if step.refusals < _MAX_REFUSALS and others:
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
