"""A gateway with the real wire contract and no model: it records its calls and gives the replies that a test sets."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.tokens import as_array, count, pack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.rpc.convert import tiers_to_wire, usage_to_wire
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2, workflow_pb2, workflow_pb2_grpc

TTFT_S, STEP_S = 0.25, 0.75
SPOKEN = pack([72, 105])  # the reply unless a request forces another
SPOKEN_TEXT = ("Hello, ", "world")


class Call(NamedTuple):
    """One call of a client about a workflow: start, step, tool started, tool finished or end."""

    kind: str
    detail: str = ""


class RecordingGateway(workflow_pb2_grpc.WorkflowServiceServicer):
    """Reports half of the available tokens as delivered, by the GPU tier."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.steps: defaultdict[str, list[workflow_pb2.SubmitStepRequest]] = defaultdict(list)
        self.started: list[workflow_pb2.StartWorkflowRequest] = []
        self.failures: dict[tuple[str, str], PbkvError] = {}  # by workflow, or #0 for the first, and call
        self.hold_until = 1  # steps that must be in flight before the first gets its reply
        self.most_open = 0
        self.disobedient = False  # answers one token less than forced
        self.predictor_address = ""
        self._in_flight = 0
        self._released: asyncio.Event | None = None
        self._open: set[str] = set()
        self._seen: set[bytes] = set()

    async def StartWorkflow(  # noqa: N802
        self, request: workflow_pb2.StartWorkflowRequest, context: Any
    ) -> workflow_pb2.StartWorkflowResponse:
        name = request.workflow_id
        self._fail(name, "start")
        self.started.append(request)
        self.calls[name].append(Call("start"))
        self._open.add(name)
        self.most_open = max(self.most_open, len(self._open))
        return workflow_pb2.StartWorkflowResponse(workflow_id=name, lease_s=60.0)

    async def SubmitStep(  # noqa: N802
        self, request: workflow_pb2.SubmitStepRequest, context: Any
    ) -> AsyncGenerator[workflow_pb2.StepEvent, None]:
        name, position = request.workflow_id, len(self.steps[request.workflow_id])
        self.steps[name].append(request)
        self.calls[name].append(Call("step", request.agent_id))
        self._fail(name, str(position))
        await self._hold()
        usage = self._usage(request)
        accepted = workflow_pb2.StepEvent.Accepted(step=position, worker_id="worker-0", prompt_tokens=usage.prompt_tokens)
        yield workflow_pb2.StepEvent(accepted=accepted)
        for tokens in self._answer(request):
            yield workflow_pb2.StepEvent(tokens=tokens)
        finished = workflow_pb2.StepEvent.Finished(reason=types_pb2.FINISH_REASON_LENGTH, usage=usage_to_wire(usage))
        yield workflow_pb2.StepEvent(finished=finished)

    def SubmitSteps(  # noqa: N802
        self, requests: AsyncIterator[workflow_pb2.SubmitStepsRequest], context: Any
    ) -> AsyncIterator[workflow_pb2.SubmitStepsResponse]:
        return StepCalls("SubmitSteps", self.SubmitStep, workflow_pb2.SubmitStepsResponse).serve(requests, context)

    async def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: Any
    ) -> workflow_pb2.ReportToolCallResponse:
        started = request.phase == workflow_pb2.ReportToolCallRequest.PHASE_STARTED
        assert not request.HasField("expected_s")
        self.calls[request.workflow_id].append(Call("tool started" if started else "tool finished", request.tool))
        return workflow_pb2.ReportToolCallResponse()

    async def EndWorkflow(  # noqa: N802
        self, request: workflow_pb2.EndWorkflowRequest, context: Any
    ) -> workflow_pb2.EndWorkflowResponse:
        self.calls[request.workflow_id].append(Call("end"))
        self._open.discard(request.workflow_id)
        self._fail(request.workflow_id, "end")
        return workflow_pb2.EndWorkflowResponse()

    async def GetClusterStatus(  # noqa: N802
        self, request: workflow_pb2.GetClusterStatusRequest, context: Any
    ) -> workflow_pb2.GetClusterStatusResponse:
        status = cluster_status()
        status.predictor_address = self.predictor_address
        return status

    def _fail(self, workflow: str, call: str) -> None:
        names = [request.workflow_id for request in self.started]
        by_number = f"#{names.index(workflow) if workflow in names else len(names)}"
        for name in (workflow, by_number):
            if (name, call) in self.failures:
                raise self.failures[name, call]

    async def _hold(self) -> None:
        if self._released is None:
            self._released = asyncio.Event()
        self._in_flight += 1
        if self._in_flight >= self.hold_until:
            self._released.set()
        await self._released.wait()

    def _usage(self, request: workflow_pb2.SubmitStepRequest) -> Usage:
        prompt = request.prompt.token_ids.data
        tokens = count(prompt)
        available = max((_common_prefix(prompt, seen) for seen in self._seen), default=0)
        self._seen.add(prompt)
        return Usage(
            prompt_tokens=tokens,
            available_tokens=available,
            captured={Tier.GPU: available},
            delivered={Tier.GPU: available // 2},
            computed_tokens=tokens - available // 2,
            generated_tokens=count(request.sampling.forced_output.data),
            ttft_s=TTFT_S,
            total_s=STEP_S,
            retries=1,
            preemptions=2,
            worker_id="worker-0",
        )

    def _answer(self, request: workflow_pb2.SubmitStepRequest) -> Iterator[workflow_pb2.StepEvent.Tokens]:
        forced = request.sampling.forced_output.data
        ids = as_array(forced or SPOKEN)
        if self.disobedient:
            ids = ids[:-1]
        half = len(ids) // 2
        for part, text in zip((ids[:half], ids[half:]), SPOKEN_TEXT, strict=True):
            yield workflow_pb2.StepEvent.Tokens(
                token_ids=types_pb2.PackedTokens(data=part.tobytes()), text="" if forced else text
            )


def _common_prefix(left: bytes, right: bytes) -> int:
    length = min(count(left), count(right))
    unequal = as_array(left)[:length] != as_array(right)[:length]
    return int(unequal.argmax()) if unequal.any() else length


def cluster_status() -> workflow_pb2.GetClusterStatusResponse:
    """The status of a cluster of two workers, one of them lost."""
    response = workflow_pb2.GetClusterStatusResponse(
        cluster="unit",
        model="tiny",
        open_workflows=3,
        running_steps=2,
        predictor_reachable=True,
        index_reachable=False,
        log_path="/var/ray/logs/a.err",
        http_address="127.0.0.1:26180",
    )
    tier = store_pb2.TierStat(
        tier=types_pb2.TIER_GPU, capacity_blocks=4096, used_blocks=1500, locked_blocks=7, block_bytes=8192, ready_blocks=1024
    )
    guard = store_pb2.GuardStat(
        prompt_tokens=20_000,
        hits=store_pb2.CacheHits(tokens=14_400, gpu_tokens=10_400),
        lru_hits=store_pb2.CacheHits(tokens=12_200, gpu_tokens=8_240),
        policy_hits=store_pb2.CacheHits(tokens=14_600, gpu_tokens=10_580),
        saved_s=1_234.56,
        evicted_by_policy=12,
    )
    store = store_pb2.StoreStat(tiers=[tier], policy="pbkv-paper", decisions={"evict:retired": 12}, guard=guard)
    first = response.workers.add(
        worker_id="worker-0", node_id="node-0", address="127.0.0.1:1", reachable=True, store=store, running=2
    )
    first.access_updates_applied, first.access_workflows = 7, 1_234
    response.workers.add(worker_id="worker-1", node_id="node-0", address="127.0.0.1:2", reachable=False)
    response.problems.add(member="predictor", problem="the state /s cannot be saved: No space left on device")
    totals = response.totals
    totals.steps, totals.prompt_tokens, totals.available_tokens, totals.computed_tokens = 40, 20_000, 16_000, 8_000
    totals.captured.extend(tiers_to_wire({Tier.GPU: 10_000, Tier.HOST: 3_000}))
    totals.delivered.extend(tiers_to_wire({Tier.GPU: 10_000, Tier.HOST: 2_000}))
    response.decisions["route:prefix"] = 31
    return response


@asynccontextmanager
async def serving(gateway: RecordingGateway) -> AsyncIterator[str]:
    """Serves `gateway` on a free port in the running loop, and yields the address."""
    server = RpcServer()
    service = workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"]
    server.add(service, workflow_pb2_grpc.add_WorkflowServiceServicer_to_server, gateway)
    address = await server.start("127.0.0.1", 0)
    try:
        yield address
    finally:
        await server.stop(0)


@contextmanager
def serving_in_thread(gateway: RecordingGateway) -> Iterator[str]:
    """As `serving`, in a thread, for code that runs a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = serving(gateway)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(30)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
