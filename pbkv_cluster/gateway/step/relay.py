"""Runs a step on a worker and passes its output on; when the worker is lost, goes on at another.

What the two sides agree on, so that no token and no character comes twice or is missing:

- `RunStepRequest.sent` holds the output tokens that the client has. The worker goes on behind them and does not send them
  again; `sampling.max_tokens` counts them, and the seed gives the following tokens the values that they would have had.
- Characters are another matter: text that could be the start of a stop string is held back, and what the lost worker held
  back is unknown here. So where `sent` is not empty the worker decodes it once more, and its text starts at the beginning of
  the output; the gateway leaves out as many characters as the client has. If `sent` ends the answer already, that is one
  event with text and no tokens, and then Finished.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
from grpc import aio

from pbkv_cluster.core.background import check_cancelled
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import HitMeter, Usage
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.speeds import PrefillSpeed
from pbkv_cluster.gateway.routing.worker_pool import Key, Worker, WorkerPool
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.sessions import Session
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, workflow_pb2

# How a stream ends when its worker, or the way to it, is gone. ABORTED and CANCELLED are a server that shuts down.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})
_REFUSALS = 2  # workers with full queues before the client is told


@dataclass(slots=True)
class _Course:
    """What a step has been through."""

    avoid: set[Key] = field(default_factory=set)
    refusals: int = 0


@dataclass(slots=True)
class Relay:
    """Between clients and workers."""

    pool: WorkerPool
    placement: Placement
    speed: PrefillSpeed
    infinite: InfiniteCache
    meter: HitMeter
    decisions: Decisions
    clock: Clock
    retry_limit: int
    tell_placed: Callable[[Session, str], None]  # that a worker has a first step of a workflow

    async def run(self, step: Step, spec: StepSpec) -> AsyncIterator[workflow_pb2.StepEvent]:
        """One Accepted, the output, one Finished; CANCELLED if the workflow ends meanwhile.

        Raises:
            PbkvError: what the worker refused the step with, or that too many workers were lost under it.
        """
        course = _Course()
        accepted = False
        while not step.ended.is_set():
            workers = await self.placement.wait(course.avoid, step.ended)
            if not workers:
                break
            worker = await self.placement.choose(workers, spec.prompt.keys, spec.session.last_worker)
            check_cancelled()
            if step.ended.is_set():
                break
            if worker.closed:  # it left while the index was asked
                continue
            self._enter(step, spec, worker)
            began = self.clock.now()
            step.call = worker.stub.RunStep(_request(step, spec))  # under way while the client hears of it
            if not accepted:
                accepted = True
                yield _accepted(spec, worker)
            try:
                async for event in self._stream(step, spec, worker, began):
                    yield event
                if step.finished:
                    return
            except aio.AioRpcError as error:
                self._judge(step, worker, course, error)
            except asyncio.CancelledError:
                # The end of the workflow cancels the worker's stream, which shows here the same as the client's cancel.
                check_cancelled()
                if not step.ended.is_set():
                    raise Unavailable("the gateway is stopping") from None
            finally:
                self.pool.release(worker, step)
        yield _finished(types_pb2.FINISH_REASON_CANCELLED, step.complete(Usage(), self.clock.now()))

    def _enter(self, step: Step, spec: StepSpec, worker: Worker) -> None:
        worker.steps.add(step)
        step.worker = worker
        spec.session.last_worker = worker.id
        served_by = spec.session.served_by
        if served_by is None or worker.id not in served_by:
            self.tell_placed(spec.session, worker.id)
        if served_by is not None:
            served_by.add(worker.id)

    async def _stream(self, step: Step, spec: StepSpec, worker: Worker, began: float) -> AsyncIterator[workflow_pb2.StepEvent]:
        assert step.call is not None
        skip = step.sent_chars
        async for event in step.call:
            match event.WhichOneof("event"):
                case "tokens":
                    first = step.first_token is None
                    text = step.take(event.tokens, skip, self.clock.now())
                    skip = max(skip - len(event.tokens.text), 0)
                    if first and step.first_token is not None:
                        self.infinite.remember(spec.prompt.keys)
                    if text or event.tokens.token_ids.data:
                        yield _output(event.tokens.token_ids, text)
                case "finished":
                    usage = convert.usage_from_wire(event.finished.usage)
                    step.hidden = event.finished.hidden
                    self._learn(step, spec, worker, usage, self.clock.now() - began, event.finished.reason)
                    yield _finished(event.finished.reason, usage)
                    await step.call.code()  # lets the worker close its side; hanging up would look like a cancelled step
                    return
        raise aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), "the stream ended unfinished")

    def _learn(
        self, step: Step, spec: StepSpec, worker: Worker, usage: Usage, seconds: float, reason: types_pb2.FinishReason
    ) -> None:
        step.finished = True
        step.complete(usage, self.clock.now())
        if reason == types_pb2.FINISH_REASON_CANCELLED:
            return
        self.speed.add(usage)
        worker.step_s.add(seconds)
        self.meter.add(usage)
        self.infinite.remember(spec.prompt.output_keys(bytes(step.sent)))

    def _judge(self, step: Step, worker: Worker, course: _Course, error: aio.AioRpcError) -> None:
        """Returns if the step is to go on elsewhere, else raises what the client is to see."""
        code = error.code()
        course.avoid.add(worker.key)
        others = any(each.key not in course.avoid for each in self.pool.live())
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.decisions[Reason.WORKER_REFUSED] += 1
            course.refusals += 1
            if course.refusals < _REFUSALS and others:
                return
        # INTERNAL may be the worker's own trouble, a broken device, or the step's: another worker is worth a try, the same
        # one is not.
        elif code in _LOST or (code is grpc.StatusCode.INTERNAL and others):
            self.decisions[Reason.WORKER_LOST] += 1
            if code is not grpc.StatusCode.INTERNAL:
                self.pool.lost(worker)
            if step.retries < self.retry_limit:
                step.retries += 1
                self.decisions[Reason.STEP_RETRIED] += 1
                return
            if code in _LOST:
                raise Unavailable(
                    f"{step.retries + 1} workers were lost under the step; the last: {error.details()}"
                ) from error
        raise from_rpc(error) from error


def _request(step: Step, spec: StepSpec) -> worker_pb2.RunStepRequest:
    graph = spec.session.step_graph
    return worker_pb2.RunStepRequest(
        request_id=f"{spec.session.id}/{spec.number}/{step.retries}",
        workflow_id=spec.session.id,
        agent_id=spec.agent_id,
        call_site=spec.call_site,
        step=spec.number,
        tenant=spec.tenant,
        prompt=types_pb2.PackedTokens(data=spec.prompt.packed),
        sampling=convert.sampling_to_wire(spec.sampling),
        sent=types_pb2.PackedTokens(data=bytes(step.sent)),
        priority=spec.priority,
        step_graph=None if graph is None else convert.step_graph_to_wire(graph),
    )


def _accepted(spec: StepSpec, worker: Worker) -> workflow_pb2.StepEvent:
    accepted = workflow_pb2.StepEvent.Accepted(step=spec.number, worker_id=worker.id, prompt_tokens=spec.prompt.tokens)
    return workflow_pb2.StepEvent(accepted=accepted)


def _output(token_ids: types_pb2.PackedTokens, text: str) -> workflow_pb2.StepEvent:
    return workflow_pb2.StepEvent(tokens=workflow_pb2.StepEvent.Tokens(token_ids=token_ids, text=text))


def _finished(reason: types_pb2.FinishReason, usage: Usage) -> workflow_pb2.StepEvent:
    return workflow_pb2.StepEvent(finished=workflow_pb2.StepEvent.Finished(reason=reason, usage=convert.usage_to_wire(usage)))
