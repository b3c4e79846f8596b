"""The link to one worker. Only `step_link` and `inspection/index_check` know messages of `WorkerService`, too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from grpc import aio

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.workflow.receiver import Receiver
from pbkv_cluster.core.workflow.remote_steps import RemoteStepEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.speeds import LoadingCost, StepSpeed
from pbkv_cluster.gateway.routing.step_link import StepLink, StepStream
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import MAX_MESSAGE_BYTES, connect
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.block_map import WorkerKey
from pbkv_cluster.store.cluster_index import WorkerEntry

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

_PROBE_TIMEOUT_S = 1.0
_STATUS_TIMEOUT_S = 1.0
_RETIRE_TIMEOUT_S = 2.0
_TELL_TIMEOUT_S = 2.0
_TOOL_CALL_TIMEOUT_S = 0.25  # the client waits for it, and a worker that misses it loses a hint only


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker reports of itself."""

    running: int  # steps on the device
    waiting: int  # steps in the queue
    store: store_pb2.StoreStat  # passed on as it is
    access_updates_applied: int | None  # None: it has no access model
    access_workflows: int | None  # that its access model has learnt from; likewise
    predictor_reachable: bool  # it receives the predictor's broadcast


class RemoteSteps(NamedTuple):
    """What a worker is to be told of a workflow's steps on other workers."""

    events: Sequence[RemoteStepEvent]
    after: int  # index of the event that it was told last; -1: none
    now: float  # seconds, on the clock of the events


class Direct(NamedTuple):
    """A receiver, and what it is told of besides the output."""

    receiver: Receiver
    age_s: float  # since the step arrived here
    available_tokens: int
    retries: int


@dataclass(eq=False, slots=True)
class Worker:
    """One incarnation of a worker."""

    entry: WorkerEntry
    channel: aio.Channel
    stub: "WorkerServiceAsyncStub"
    loading: LoadingCost
    steps: WorkerLoad = field(default_factory=WorkerLoad)  # in flight from this gateway
    speed: StepSpeed = field(default_factory=StepSpeed)
    suspect: bool = False
    closed: bool = False  # its channel is closed, or is about to be
    _link: StepLink = field(init=False)
    _calls: int = 0  # short calls in flight

    def __post_init__(self) -> None:
        self._link = StepLink(self.stub)

    @classmethod
    def open(cls, entry: WorkerEntry, clock: Clock) -> Self:
        channel = connect(entry.address)
        return cls(entry, channel, worker_pb2_grpc.WorkerServiceStub(channel), LoadingCost(clock))

    @property
    def id(self) -> str:
        return self.entry.worker_id

    @property
    def key(self) -> WorkerKey:
        return key_of(self.entry)

    @property
    def namespace(self) -> Namespace:
        """Of its blocks, without a tenant."""
        return self.entry.namespace

    @property
    def memory_tokens(self) -> int:
        """That its GPU and its host memory hold."""
        return (self.entry.gpu_blocks + self.entry.host_blocks) * BLOCK_TOKENS

    @property
    def idle(self) -> bool:
        """Whether this gateway has no step and no call there."""
        return not self.steps and not self._calls

    def run_step(
        self,
        *,
        request_id: str,
        workflow_id: str,
        agent: str,
        step: int,
        parent_step: int | None,
        tenant: str,
        prompt: bytes,
        sampling: SamplingParams,
        sent: bytes,
        priority: int,
        step_graph: StepGraph | None,
        remote_steps: RemoteSteps | None,
        direct: Direct | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float | None = None,
    ) -> StepStream:
        """Sends a step to the worker; returns at once.

        Args:
            parent_step: number of the step that this one follows; None: it is the first.
            sent: packed output tokens that the client has from a lost worker. The worker goes on after them.
            remote_steps: what the worker is to be told of steps elsewhere; left out where the message would be too large.
            direct: who gets the output in place of this gateway, if it is connected there.
            timeout_s: seconds after which the worker drops the step, in its queue or running, even if this gateway hangs.
        """
        request = worker_pb2.RunStepRequest(
            request_id=request_id,
            workflow_id=workflow_id,
            agent_id=agent,
            step=step,
            parent_step=parent_step,
            tenant=tenant,
            prompt=types_pb2.PackedTokens(data=prompt),
            sampling=convert.sampling_to_wire(sampling),
            sent=types_pb2.PackedTokens(data=sent),
            priority=priority,
            step_graph=None if step_graph is None else convert.step_graph_to_wire(step_graph),
            direct=None if direct is None else _direct_to_wire(direct),
        )
        if remote_steps is not None:
            request.remote_steps.extend(_to_wire(remote_steps))
            request.remote_after = remote_steps.after
            # The next call that tells the worker more is refused, and then it is told everything.
            if request.ByteSize() > MAX_MESSAGE_BYTES:
                request.ClearField("remote_steps")
        return self._link.run(request, metadata, timeout_s)

    async def probe(self) -> bool:
        """Whether the worker answers."""
        try:
            with self._calling() as stub:
                await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=_PROBE_TIMEOUT_S)
        except (aio.AioRpcError, Unavailable):
            return False
        return True

    async def report(self) -> WorkerReport | None:
        """The worker's report; None if it does not answer within a second."""
        try:
            with self._calling() as stub:
                answer = await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except (aio.AioRpcError, Unavailable):
            return None
        return WorkerReport(
            answer.running,
            answer.waiting,
            answer.store,
            answer.access_updates_applied if answer.HasField("access_updates_applied") else None,
            answer.access_workflows if answer.HasField("access_workflows") else None,
            answer.predictor_reachable,
        )

    async def retire(self, workflow_id: str) -> bool:
        """Has the worker retire what only the workflow held; False if it does not answer."""
        request = worker_pb2.RetireWorkflowRequest(workflow_id=workflow_id)
        try:
            with self._calling() as stub:
                await stub.RetireWorkflow(request, timeout=_RETIRE_TIMEOUT_S)
        except (aio.AioRpcError, Unavailable):
            return False
        return True

    async def tell_steps(self, workflow_id: str, remote_steps: RemoteSteps) -> bool | None:
        """Tells the worker of steps elsewhere. False: what it was told before has not arrived; None: it does not answer."""
        request = worker_pb2.TellStepsRequest(
            workflow_id=workflow_id, after=remote_steps.after, remote_steps=_to_wire(remote_steps)
        )
        try:
            with self._calling() as stub:
                return (await stub.TellSteps(request, timeout=_TELL_TIMEOUT_S)).heard
        except (aio.AioRpcError, Unavailable):
            return None

    async def report_tool_call(self, workflow_id: str, call: ToolCall, started: bool) -> bool:
        """Tells the worker that a workflow waits for a tool, or no longer does; False if it does not answer at once."""
        request = convert.tool_call_to_wire(workflow_id, call, started)
        try:
            with self._calling() as stub:
                await stub.ReportToolCall(request, timeout=_TOOL_CALL_TIMEOUT_S)
        except (aio.AioRpcError, Unavailable):
            return False
        return True

    async def close(self) -> None:
        self.closed = True
        await self._link.close()
        await self.channel.close()

    @contextmanager
    def _calling(self) -> Iterator["WorkerServiceAsyncStub"]:
        """The stub for a short call. NOTE: closing a channel cancels the calls on it, and with them the tasks that await one.

        Raises:
            Unavailable: the worker has left.
        """
        if self.closed:
            raise Unavailable(f"worker {self.id} has left")
        self._calls += 1
        try:
            yield self.stub
        finally:
            self._calls -= 1


def _to_wire(remote_steps: RemoteSteps) -> list[worker_pb2.RemoteStep]:
    return convert.remote_steps_to_wire(remote_steps.events, remote_steps.now)


def _direct_to_wire(direct: Direct) -> worker_pb2.RunStepRequest.Direct:
    return worker_pb2.RunStepRequest.Direct(
        receiver=convert.receiver_to_wire(direct.receiver),
        age_s=direct.age_s,
        available_tokens=direct.available_tokens,
        retries=direct.retries,
    )


def key_of(entry: WorkerEntry) -> WorkerKey:
    return entry.worker_id, entry.incarnation
