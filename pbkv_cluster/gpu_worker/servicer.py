"""`WorkerService` on the wire: messages in, commands to the engine. `store_servicer` has the worker's other service."""

import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.logs.fields import bind
from pbkv_cluster.gpu_worker.block_pages import block_pages, find_unbacked
from pbkv_cluster.gpu_worker.direct.handover import Handover
from pbkv_cluster.gpu_worker.direct.receivers import ReceiverLost, Receivers
from pbkv_cluster.gpu_worker.direct.tickets import ReceiverKey
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.gpu_worker.predictor_link.link import PredictorLink
from pbkv_cluster.gpu_worker.sheltering import take_in
from pbkv_cluster.gpu_worker.step_wire import output_to_wire, step_from_wire, trace_phases
from pbkv_cluster.gpu_worker.store_stat import store_stat
from pbkv_cluster.rpc import tracing
from pbkv_cluster.rpc.convert import (
    remote_steps_from_wire,
    tool_call_from_wire,
)
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc, workflow_pb2


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Runs steps and reports on the engine."""

    def __init__(
        self,
        thread: EngineThread,
        namespace: Namespace,
        worker_id: str,
        predictor: PredictorLink | None,
        memory: PoolMemory,
        receivers: Receivers,
        clock: Clock,
    ) -> None:
        """Args:
        thread: the engine's.
        namespace: of the model's blocks, without a tenant.
        worker_id: for the status.
        predictor: link to it, if there is one.
        memory: where the blocks lie.
        receivers: of clients that take their output here.
        clock: the engine's.
        """
        self._thread = thread
        self._clock = clock
        self._namespace = namespace
        self._worker_id = worker_id
        self._predictor = predictor
        self._memory = memory
        self._receivers = receivers
        self._numbers = itertools.count()
        self.step_calls = StepCalls("RunSteps", self.RunStep, worker_pb2.RunStepsResponse)

    def RunSteps(  # noqa: N802
        self, requests: AsyncIterator[worker_pb2.RunStepsRequest], context: Any
    ) -> AsyncIterator[worker_pb2.RunStepsResponse]:
        return self.step_calls.serve(requests, context)

    async def RunStep(  # noqa: N802
        self, request: worker_pb2.RunStepRequest, context: Any
    ) -> AsyncGenerator[worker_pb2.RunStepEvent, None]:
        step = step_from_wire(request, self._namespace, next(self._numbers))
        bind(workflow=request.workflow_id, step=request.step, agent=request.agent_id)
        # If a call is cancelled while it writes, its generator ends only when it is garbage collected. The step must end now.
        context.add_done_callback(lambda _: self._thread.post(lambda engine: engine.cancel(step.id)))
        if request.remote_steps:
            self._hear(request)
        span = tracing.start("worker", context.invocation_metadata())
        outputs = self._thread.stream(step)
        failure = "cancelled"
        try:
            handover = self._handover(request)
            if handover is None and request.HasField("direct"):
                ticket = self._receivers.invite(_receiver_key(request))
                if ticket is not None:
                    yield worker_pb2.RunStepEvent(invitation=worker_pb2.RunStepEvent.Invitation(ticket=ticket))
            async for output in outputs:
                if output.usage is not None:
                    failure = ""
                    trace_phases(span, output.usage, self._clock.wall())
                if handover is None:
                    for event in output_to_wire(output):
                        yield event
                else:
                    await handover.room()
                    # The gateway first: it is to know of the end by the time that the client's next call is there.
                    for event in handover.tell(output):
                        yield event
                    handover.send(output)
        except PbkvError as error:
            failure = str(error)
            raise
        except ReceiverLost:
            failure = "receiver lost"
            yield worker_pb2.RunStepEvent(receiver_lost=worker_pb2.RunStepEvent.ReceiverLost())
        finally:
            span.end(failure)
            await outputs.aclose()

    def _handover(self, request: worker_pb2.RunStepRequest) -> Handover | None:
        """The way to the step's receiver, if it is connected."""
        if not request.HasField("direct"):
            return None
        receiver = self._receivers.find(_receiver_key(request))
        return None if receiver is None else Handover(receiver, request, self._worker_id, self._clock)

    async def RetireWorkflow(  # noqa: N802
        self, request: worker_pb2.RetireWorkflowRequest, context: Any
    ) -> worker_pb2.RetireWorkflowResponse:
        await self._thread.call(lambda engine: engine.cache.retire(request.workflow_id))
        return worker_pb2.RetireWorkflowResponse()

    async def TellSteps(  # noqa: N802
        self, request: worker_pb2.TellStepsRequest, context: Any
    ) -> worker_pb2.TellStepsResponse:
        checks.not_empty("workflow_id", request.workflow_id)
        events = remote_steps_from_wire(request.remote_steps, self._clock.now())
        return worker_pb2.TellStepsResponse(
            heard=await self._thread.call(
                lambda engine: engine.cache.hear(request.workflow_id, events, self._namespace, request.after)
            )
        )

    def _hear(self, request: worker_pb2.RunStepRequest) -> None:
        """Hands the cache what comes with a step, before the step."""
        events = remote_steps_from_wire(request.remote_steps, self._clock.now())

        def hear(engine: Engine) -> None:
            engine.cache.hear(request.workflow_id, events, self._namespace, request.remote_after)

        self._thread.post(hear)

    async def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: Any
    ) -> workflow_pb2.ReportToolCallResponse:
        checks.not_empty("workflow_id", request.workflow_id)
        call, started = tool_call_from_wire(request)
        await self._thread.call(lambda engine: engine.cache.tool_call(request.workflow_id, call, started))
        return workflow_pb2.ReportToolCallResponse()

    async def GetWorkerStatus(  # noqa: N802
        self, request: worker_pb2.GetWorkerStatusRequest, context: Any
    ) -> worker_pb2.GetWorkerStatusResponse:
        status = await self._thread.call(self._status)
        if (predictor := self._predictor) is not None:
            status.predictor_reachable = predictor.is_connected
            status.forecasts_applied = predictor.forecasts.applied
            if predictor.model_updates is not None:
                status.access_updates_applied = predictor.model_updates.applied
                status.access_workflows = predictor.model_updates.workflows
            if predictor.access_logs is not None:
                status.store.decisions.update(predictor.access_logs.decisions)
        return status

    async def ListBlocks(  # noqa: N802
        self, request: worker_pb2.ListBlocksRequest, context: Any
    ) -> AsyncIterator[worker_pb2.BlockPage]:
        async for page in block_pages(self._thread):
            yield page

    async def FindUnbacked(self, request: worker_pb2.BlockPage, context: Any) -> worker_pb2.BlockPage:  # noqa: N802
        return await find_unbacked(self._memory.host, request)

    async def Shelter(  # noqa: N802
        self, request: worker_pb2.ShelterRequest, context: Any
    ) -> worker_pb2.ShelterResponse:
        return await take_in(self._thread, request)

    def _status(self, engine: Engine) -> worker_pb2.GetWorkerStatusResponse:
        return worker_pb2.GetWorkerStatusResponse(
            worker_id=self._worker_id,
            running=len(engine.scheduler.running),
            waiting=engine.scheduler.waiting,
            store=store_stat(engine, self._memory),
            engine_steps=engine.steps,
            prefill_tokens_per_s=engine.prefill_tokens_per_s,
        )


def _receiver_key(request: worker_pb2.RunStepRequest) -> ReceiverKey:
    return ReceiverKey(request.tenant, request.direct.receiver.id)
