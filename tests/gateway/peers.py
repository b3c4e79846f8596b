"""The gateway's peers: real gRPC servers whose answers a test scripts."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from pbkv_cluster.core.blocks import KEY_BYTES, Namespace
from pbkv_cluster.core.load_speeds import LoadSpeeds
from pbkv_cluster.core.tokens import count, pack, unpack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.v1 import (
    predictor_pb2,
    predictor_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
    types_pb2,
    worker_pb2,
    worker_pb2_grpc,
    workflow_pb2,
)
from pbkv_cluster.store.cluster_index import OUR_ENGINE, WorkerEntry

VOCAB = 257
CONTEXT = 256
NAMESPACE = Namespace("scripted", "1", "float32", "test")


class ScriptedCaches(store_pb2_grpc.StoreServiceServicer):
    """A cache that has nothing."""

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        return store_pb2.PrefetchResponse(tokens=len(request.prompt.token_ids.data) // 64 * 16)


@dataclass(eq=False)
class ScriptedWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Answers with letters that depend on seed and position, one event per token; keeps to the rules for `sent`."""

    id: str
    incarnation: str = "1"
    node_id: str = "node"
    context: int = CONTEXT  # tokens
    namespace: Namespace = NAMESPACE
    engine: str = OUR_ENGINE
    say: Callable[[str], str] | None = None  # answers a prompt with a text, instead of letters
    unsaid: str = ""  # end of that text whose tokens are sent, but whose text is not
    hidden: bytes = b""  # sent with Finished
    speeds: LoadSpeeds | None = None  # likewise
    reads_siblings: bool = True  # as it announces
    reads_peers: bool = True
    hold_chars: int = 0  # characters held back until the end
    stop_at: int = -1  # waits for `go` before this token
    fail_with: grpc.StatusCode | None = None
    end_early: bool = False  # the stream ends at `stop_at` with status OK and without Finished
    captured: Mapping[Tier, int] = field(default_factory=dict)
    requests: list[worker_pb2.RunStepRequest] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    tellings: list[tuple[int, list[tuple[int, str | None]]]] = field(default_factory=list)  # of steps elsewhere; after what
    deaf: int = 0  # tellings that it does not take
    retire_go: asyncio.Event | None = None  # retiring waits for it
    tool_calls: list[tuple[str, ToolCall, bool]] = field(default_factory=list)  # workflow, call, whether it has started
    tool_call_go: asyncio.Event | None = None  # reports of tool calls wait for it
    sees_predictor: bool = False
    blocks: dict[bytes, int] = field(default_factory=dict)  # that its cache holds, packed residencies by key
    unbacked: set[bytes] = field(default_factory=set)  # keys of blocks that are in no slot
    mends: bool = False  # they are, once it has been asked
    cancelled: int = 0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    server: RpcServer = field(default_factory=RpcServer)
    address: str = ""

    def caches(self) -> store_pb2_grpc.StoreServiceServicer:
        return ScriptedCaches()  # type: ignore[abstract]

    async def start(self, port: int = 0) -> None:
        descriptor = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
        self.server.add(descriptor, worker_pb2_grpc.add_WorkerServiceServicer_to_server, self)
        stores = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
        self.server.add(stores, store_pb2_grpc.add_StoreServiceServicer_to_server, self.caches())
        self.address = await self.server.start("127.0.0.1", port)

    def record(self) -> WorkerEntry:
        return WorkerEntry(
            self.id,
            self.incarnation,
            self.node_id,
            self.address,
            os.getpid(),
            self.namespace,
            VOCAB,
            self.context,
            gpu_blocks=64,
            host_blocks=64,
            block_bytes=4096,
            engine=self.engine,
            reads_siblings=self.reads_siblings,
            reads_peers=self.reads_peers,
        )

    def RunSteps(  # noqa: N802
        self, requests: AsyncIterator[worker_pb2.RunStepsRequest], context: Any
    ) -> AsyncIterator[worker_pb2.RunStepsResponse]:
        return StepCalls("RunSteps", self.RunStep, worker_pb2.RunStepsResponse).serve(requests, context)

    async def RunStep(  # noqa: N802
        self, request: worker_pb2.RunStepRequest, context: Any
    ) -> AsyncGenerator[worker_pb2.RunStepEvent, None]:
        self.requests.append(request)
        if self.fail_with is not None:
            await context.abort(self.fail_with, "scripted")
        sent = count(request.sent.data)
        whole = answer_tokens(request.sampling)
        ended = types_pb2.FINISH_REASON_LENGTH
        if self.say is not None:
            answer = self.say(bytes(unpack(request.prompt.data)).decode()).encode()[: request.sampling.max_tokens]
            ended = (
                types_pb2.FINISH_REASON_LENGTH if len(answer) == request.sampling.max_tokens else types_pb2.FINISH_REASON_STOP
            )
            whole = list(answer)
        text = "".join(map(chr, whole)).removesuffix(self.unsaid)
        sent_chars = 0
        try:
            for position in range(sent, len(whole)):
                if position == self.stop_at:
                    self.stopped.set()
                    if self.end_early:
                        return
                    await self.go.wait()
                upto = max(position + 1 - self.hold_chars, sent_chars)
                event = tokens_event([whole[position]], text[sent_chars:upto])
                if request.sampling.HasField("top_logprobs"):
                    event.tokens.logprobs.add(
                        logprob=-position / 2,
                        top_ids=range(65, 65 + request.sampling.top_logprobs),
                        top_logprobs=[-float(rank) for rank in range(request.sampling.top_logprobs)],
                    )
                yield event
                sent_chars = upto
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if sent_chars < len(text):
            yield tokens_event([], text[sent_chars:])
        usage = Usage(
            prompt_tokens=count(request.prompt.data),
            captured=dict(self.captured),
            delivered=dict(self.captured),
            computed_tokens=count(request.prompt.data) - sum(self.captured.values()),
            generated_tokens=len(whole),
            prefill_s=0.001,
            worker_id=self.id,
        )
        speeds = None if self.speeds is None else convert.load_speeds_to_wire(self.speeds)
        finished = worker_pb2.RunStepEvent.Finished(
            reason=ended, usage=convert.usage_to_wire(usage), hidden=self.hidden, speeds=speeds
        )
        yield worker_pb2.RunStepEvent(finished=finished)

    async def TellSteps(  # noqa: N802
        self, request: worker_pb2.TellStepsRequest, context: Any
    ) -> worker_pb2.TellStepsResponse:
        self.tellings.append((request.after, [(step.step, step.WhichOneof("event")) for step in request.remote_steps]))
        heard, self.deaf = self.deaf == 0, max(self.deaf - 1, 0)
        return worker_pb2.TellStepsResponse(heard=heard)

    async def ListBlocks(  # noqa: N802
        self, request: worker_pb2.ListBlocksRequest, context: Any
    ) -> AsyncIterator[worker_pb2.BlockPage]:
        if self.blocks:
            yield worker_pb2.BlockPage(keys=b"".join(self.blocks), residencies=self.blocks.values())

    async def FindUnbacked(self, request: worker_pb2.BlockPage, context: Any) -> worker_pb2.BlockPage:  # noqa: N802
        keys = [request.keys[at : at + KEY_BYTES] for at in range(0, len(request.keys), KEY_BYTES)]
        found = [(key, packed) for key, packed in zip(keys, request.residencies, strict=True) if key in self.unbacked]
        if self.mends:
            self.unbacked.clear()
        return worker_pb2.BlockPage(keys=b"".join(key for key, _ in found), residencies=[packed for _, packed in found])

    async def Shelter(  # noqa: N802
        self, request: worker_pb2.ShelterRequest, context: Any
    ) -> worker_pb2.ShelterResponse:
        return worker_pb2.ShelterResponse()

    async def RetireWorkflow(  # noqa: N802
        self, request: worker_pb2.RetireWorkflowRequest, context: Any
    ) -> worker_pb2.RetireWorkflowResponse:
        self.retired.append(request.workflow_id)
        if self.retire_go is not None:
            await self.retire_go.wait()
        return worker_pb2.RetireWorkflowResponse()

    async def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: Any
    ) -> workflow_pb2.ReportToolCallResponse:
        if self.tool_call_go is not None:
            await self.tool_call_go.wait()
        self.tool_calls.append((request.workflow_id, *convert.tool_call_from_wire(request)))
        return workflow_pb2.ReportToolCallResponse()

    async def GetWorkerStatus(  # noqa: N802
        self, request: worker_pb2.GetWorkerStatusRequest, context: Any
    ) -> worker_pb2.GetWorkerStatusResponse:
        return worker_pb2.GetWorkerStatusResponse(
            worker_id=self.id,
            running=len(self.requests),
            access_updates_applied=4,
            access_workflows=9,
            predictor_reachable=self.sees_predictor,
        )


@dataclass(eq=False)
class ScriptedPredictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Keeps the events that it receives."""

    events: list[WorkflowEvent] = field(default_factory=list)
    fail_with: grpc.StatusCode | None = None
    refuses: frozenset[int] = frozenset()  # sequences of events
    refused: int = 0  # requests
    silent: bool = False  # takes events and answers no question but the first of a stream
    instance: int = 0  # as it answers
    go: asyncio.Event | None = None  # each request on a stream waits for it
    streams: int = 0  # opened so far
    requests: list[int] = field(default_factory=list)  # events of each request on a stream
    server: RpcServer = field(default_factory=RpcServer)
    address: str = ""

    async def start(self, port: int = 0) -> None:
        descriptor = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]
        self.server.add(descriptor, predictor_pb2_grpc.add_PredictorServiceServicer_to_server, self)
        self.address = await self.server.start("127.0.0.1", port)

    async def ReportEvents(  # noqa: N802
        self, request: predictor_pb2.ReportEventsRequest, context: Any
    ) -> predictor_pb2.ReportEventsResponse:
        self.events.extend(map(convert.event_from_wire, request.events))
        return predictor_pb2.ReportEventsResponse(accepted=len(request.events))

    async def StreamEvents(  # noqa: N802
        self, requests: AsyncIterator[predictor_pb2.ReportEventsRequest], context: Any
    ) -> AsyncIterator[predictor_pb2.ReportEventsResponse]:
        self.streams += 1
        answer = predictor_pb2.ReportEventsResponse(instance=self.instance)
        async for request in requests:
            self.requests.append(len(request.events))
            if self.go is not None:
                await self.go.wait()
            if self.fail_with is not None:
                await context.abort(self.fail_with, "scripted")
            if not self.refuses.isdisjoint(event.sequence for event in request.events):
                self.refused += 1
                yield answer
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "scripted")
            self.events.extend(map(convert.event_from_wire, request.events))
            answer.accepted += len(request.events)
            if not request.events and (not self.silent or not answer.accepted):
                yield answer

    async def WatchForecasts(self, request: Any, context: Any) -> AsyncIterator[predictor_pb2.ForecastBatch]:  # noqa: N802
        yield predictor_pb2.ForecastBatch()

    async def ReportAccess(self, request: Any, context: Any) -> predictor_pb2.ReportAccessResponse:  # noqa: N802
        return predictor_pb2.ReportAccessResponse()

    async def Explain(self, request: Any, context: Any) -> predictor_pb2.ExplainResponse:  # noqa: N802
        return predictor_pb2.ExplainResponse()

    async def Predict(self, request: Any, context: Any) -> predictor_pb2.ForecastBatch:  # noqa: N802
        return predictor_pb2.ForecastBatch()

    def of(self, workflow_id: str) -> list[WorkflowEvent]:
        """The events of one workflow, each once, in order of arrival."""
        return list({event.sequence: event for event in self.events if event.workflow == workflow_id}.values())


def answer_tokens(sampling: types_pb2.Sampling) -> list[int]:
    """The answer of scripted workers: letters, so that text and tokens are easy to compare."""
    return [97 + (sampling.seed + 7 * position) % 26 for position in range(sampling.max_tokens)]


def tokens_event(ids: list[int], text: str) -> worker_pb2.RunStepEvent:
    tokens = worker_pb2.RunStepEvent.Tokens(token_ids=types_pb2.PackedTokens(data=pack(ids)), text=text)
    return worker_pb2.RunStepEvent(tokens=tokens)
