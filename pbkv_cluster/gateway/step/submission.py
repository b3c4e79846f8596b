"""SubmitStep, from the request to its last event."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from pbkv_cluster.core import tokens
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import InvalidArgument, NotFound, Unavailable
from pbkv_cluster.core.events import EventKind
from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.prompts import Limits, PromptReader, fit_sampling, read_sampling
from pbkv_cluster.gateway.step.relay import Relay
from pbkv_cluster.gateway.step.step import Admission, Step, StepSpec
from pbkv_cluster.gateway.workflow.lifecycle import Workflows
from pbkv_cluster.gateway.workflow.sessions import Session
from pbkv_cluster.rpc.v1 import workflow_pb2


@dataclass(slots=True)
class Submission:
    """Checks steps, has them run, and puts right what they leave behind, however they end."""

    admission: Admission
    workflows: Workflows
    prompts: PromptReader
    pool: WorkerPool
    placement: Placement
    relay: Relay
    infinite: InfiniteCache
    decisions: Decisions
    clock: Clock
    allow_forced_output: bool

    def admit(self) -> Step:
        """Lets a step in; `close` it when its call is over.

        Raises:
            ResourceExhausted: too many steps are in flight.
        """
        return self.admission.admit(self.clock.now())

    async def run(self, step: Step, request: workflow_pb2.SubmitStepRequest) -> AsyncIterator[workflow_pb2.StepEvent]:
        """The events of the step.

        Raises:
            PbkvError: the request is wrong, or the step could not be run.
        """
        spec = await self._read(step, request)
        self._open(step, spec)
        async for event in self.relay.run(step, spec):
            if event.HasField("finished"):
                # Before the client hears of the end, so that its next step comes after this one's in every account.
                self.close(step)
            yield event

    def close(self, step: Step) -> None:
        """Frees what the step holds, at once. Harmless when repeated."""
        if step.closed:
            return
        step.closed = True
        self.admission.release(step)
        if not step.finished:
            step.cancel_call()
        if step.worker is not None:
            self.pool.release(step.worker, step)
        spec = step.spec
        if spec is None:
            return
        if not step.finished:
            self.decisions[Reason.STEP_CANCELLED] += 1
        session = spec.session
        session.running.discard(step)
        if not session.ended:
            self.workflows.renew(session)
            self.workflows.tell(
                session,
                EventKind.STEP_FINISHED,
                agent=spec.agent_id,
                call_site=spec.call_site,
                step=spec.number,
                parent_step=spec.parent_step,
                prompt_tokens=spec.prompt.tokens,
                output_tokens=tokens.count(bytes(step.sent)),
                words=hashed_words(step.beginning),
                hidden=step.hidden,
            )

    async def _read(self, step: Step, request: workflow_pb2.SubmitStepRequest) -> StepSpec:
        agent_id = checks.required_name("agent_id", request.agent_id)
        call_site = checks.name("call_site", request.call_site)
        tenant = checks.name("tenant", request.tenant)
        if request.prompt.WhichOneof("form") is None:
            raise InvalidArgument("prompt", "one of text, messages and token_ids must be set")
        sampling = read_sampling(request.sampling, self.allow_forced_output)
        session = await self.workflows.find(request.workflow_id)
        _check_parent(request, session)
        tenant = tenant or session.tenant
        limits = await self._limits(step)
        prompt = await self.prompts.read(request.prompt, limits, tenant)
        sampling = fit_sampling(sampling, prompt.tokens, limits)
        if session.ended:
            raise NotFound(f"workflow {session.id!r} has ended")
        number = session.steps
        parent_step = request.parent_step if request.HasField("parent_step") else number - 1 if number else None
        return StepSpec(
            session=session,
            number=number,
            agent_id=agent_id,
            call_site=call_site,
            parent_step=parent_step,
            tenant=tenant,
            priority=request.priority,
            prompt=prompt,
            sampling=sampling,
            available_tokens=self.infinite.match(prompt.keys, prompt.tokens),
        )

    async def _limits(self, step: Step) -> Limits:
        """What the model takes; waits for a first worker to tell."""
        if (limits := self.pool.limits()) is None:
            await self.placement.wait(set(), step.ended)
            limits = self.pool.limits()
        if limits is None:
            raise Unavailable("no worker is reachable")
        return limits

    def _open(self, step: Step, spec: StepSpec) -> None:
        session = spec.session
        step.spec = spec
        session.steps += 1
        session.running.add(step)
        self.workflows.tell(
            session,
            EventKind.STEP_STARTED,
            agent=spec.agent_id,
            call_site=spec.call_site,
            step=spec.number,
            parent_step=spec.parent_step,
            prompt_tokens=spec.prompt.tokens,
            pieces=spec.prompt.pieces,
            words=() if spec.number else hashed_words(self.prompts.beginning(spec.prompt)),
        )
        self.workflows.journal.note(session)


def _check_parent(request: workflow_pb2.SubmitStepRequest, session: Session) -> None:
    if request.HasField("parent_step") and not 0 <= request.parent_step < session.steps:
        raise InvalidArgument("parent_step", f"must be an earlier step of the workflow, which has {session.steps}")
