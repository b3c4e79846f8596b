"""`WorkerService` on the wire, for vLLM."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.logs.fields import bind
from pbkv_cluster.gpu_worker.step_wire import output_to_wire, step_from_wire, trace_phases
from pbkv_cluster.integrations.vllm_worker.engine.contract import EngineContract
from pbkv_cluster.integrations.vllm_worker.held_blocks import HeldBlocks
from pbkv_cluster.integrations.vllm_worker.hints import ForecastFeed, HintBook
from pbkv_cluster.integrations.vllm_worker.steps import StepRunner
from pbkv_cluster.integrations.vllm_worker.store_servicer import store_stat
from pbkv_cluster.rpc import tracing
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc, workflow_pb2

_PAGE = 4096  # blocks


class VllmServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Runs steps and reports on the engine.

    What our own engine learns from steps elsewhere and from tool calls, vLLM has no use for: it is heard, and no more.
    """

    def __init__(
        self,
        steps: StepRunner,
        engine: EngineContract,
        held: HeldBlocks,
        hints: HintBook,
        feed: ForecastFeed | None,
        namespace: Namespace,
        worker_id: str,
        clock: Clock,
    ) -> None:
        """Args:
        steps: runs steps.
        engine: vLLM's.
        held: what it holds.
        hints: what it is told with requests.
        feed: the predictor's broadcast, if there is one.
        namespace: of the model's blocks, without a tenant.
        worker_id: for the status.
        clock: for the spans.
        """
        self._steps = steps
        self._engine = engine
        self._held = held
        self._hints = hints
        self._feed = feed
        self._namespace = namespace
        self._worker_id = worker_id
        self._clock = clock
        self._numbers = itertools.count()
        self._cancelling: set[asyncio.Task[None]] = set()
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
        context.add_done_callback(lambda _: self._cancel(step.id))
        span = tracing.start("worker", context.invocation_metadata())
        failure = "cancelled"
        try:
            async with aclosing(self._steps.run(step)) as outputs:
                async for output in outputs:
                    if output.usage is not None:
                        failure = ""
                        trace_phases(span, output.usage, self._clock.wall())
                    for event in output_to_wire(output):
                        yield event
        except PbkvError as error:
            failure = str(error)
            raise
        finally:
            span.end(failure)

    def _cancel(self, step_id: str) -> None:
        task = asyncio.ensure_future(self._steps.cancel(step_id))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def RetireWorkflow(  # noqa: N802
        self, request: worker_pb2.RetireWorkflowRequest, context: Any
    ) -> worker_pb2.RetireWorkflowResponse:
        self._hints.retired(request.workflow_id)
        return worker_pb2.RetireWorkflowResponse()

    async def TellSteps(  # noqa: N802
        self, request: worker_pb2.TellStepsRequest, context: Any
    ) -> worker_pb2.TellStepsResponse:
        checks.not_empty("workflow_id", request.workflow_id)
        return worker_pb2.TellStepsResponse(heard=True)

    async def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: Any
    ) -> workflow_pb2.ReportToolCallResponse:
        checks.not_empty("workflow_id", request.workflow_id)
        return workflow_pb2.ReportToolCallResponse()

    async def GetWorkerStatus(  # noqa: N802
        self, request: worker_pb2.GetWorkerStatusRequest, context: Any
    ) -> worker_pb2.GetWorkerStatusResponse:
        return worker_pb2.GetWorkerStatusResponse(
            worker_id=self._worker_id,
            running=self._steps.running,
            waiting=self._steps.waiting,
            store=store_stat(self._engine, self._held),
            forecasts_applied=self._hints.received,
            engine_steps=self._engine.load.batches,
            prefill_tokens_per_s=self._steps.prefill_rate.tokens_per_second,
            predictor_reachable=self._feed is not None and self._feed.is_connected,
        )

    async def ListBlocks(  # noqa: N802
        self, request: worker_pb2.ListBlocksRequest, context: Any
    ) -> AsyncIterator[worker_pb2.BlockPage]:
        blocks = iter(self._held.residency().items())
        while page := list(itertools.islice(blocks, _PAGE)):
            yield worker_pb2.BlockPage(
                keys=b"".join(key for key, _ in page), residencies=[residency.pack() for _, residency in page]
            )

    async def FindUnbacked(self, request: worker_pb2.BlockPage, context: Any) -> worker_pb2.BlockPage:  # noqa: N802
        return worker_pb2.BlockPage()  # nothing of it is said to lie in a slot

    async def Shelter(  # noqa: N802
        self, request: worker_pb2.ShelterRequest, context: Any
    ) -> worker_pb2.ShelterResponse:
        return worker_pb2.ShelterResponse()  # what vLLM keeps, it decides
