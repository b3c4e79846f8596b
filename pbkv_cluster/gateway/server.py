"""The gateway as one object: its parts put together, its background tasks, its gRPC server."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import NoReturn

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.config.engine import parse_weights
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.gateway.cache_servicer import CacheServicer
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.figures import GatewayFigures
from pbkv_cluster.gateway.inspection.agents import Agents
from pbkv_cluster.gateway.inspection.index_check import IndexCheck
from pbkv_cluster.gateway.inspection.servicer import InspectionServicer
from pbkv_cluster.gateway.inspection.watchers import Watchers
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.peers.everywhere import Everywhere
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.servicer import WorkflowServicer
from pbkv_cluster.gateway.status import StatusReader
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.admission.counted_prompts import CountedPrompts
from pbkv_cluster.gateway.step.answers import Answers
from pbkv_cluster.gateway.step.forwarding import Forwarding
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.relay import Relay
from pbkv_cluster.gateway.step.request_reader import RequestReader
from pbkv_cluster.gateway.step.submission import Submission
from pbkv_cluster.gateway.workflow.calls import WorkflowCalls
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.gone_gateways import GoneGateways
from pbkv_cluster.gateway.workflow.lifecycle import WorkflowLifecycle
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.gateway.workflow.step_teller import StepTeller
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.services import GATEWAY
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc, store_pb2, store_pb2_grpc, workflow_pb2, workflow_pb2_grpc
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexMirror

_TOKENIZER_THREADS = 2
_INDEX_PAUSE_S = 1.0  # more than transfers between tiers take
_FOR_TENANTS = ("StartWorkflow", "SubmitStep", "SubmitSteps", "ReportToolCall", "EndWorkflow")
_CACHES_FOR_TENANTS = ("Prefetch", "LeaseBlocks", "ReleaseBlocks")


class GatewayServer:
    """A gateway of a cluster. Make, `start` and `stop` it within one event loop.

    Front doors call `workflows`, `submission` and `status`; some need the tokenizer and the workers as well. `figures` has its
    metrics.
    """

    def __init__(
        self,
        config: Config,
        directory: Directory,
        index: BlockIndex,
        codec: TextCodec,
        clock: Clock,
        name: str = GATEWAY,
    ) -> None:
        """Args:
        config: of the cluster.
        directory: of the cluster.
        index: of the cluster.
        codec: the model's tokenizer.
        clock: for leases and times.
        name: of this gateway, which no other has at the same time.
        """
        gateway = config.gateway
        self._directory = directory
        decisions = Decisions()
        open_workflows = OpenWorkflows(clock, gateway.max_workflows, gateway.max_graph_bytes)
        admission = Admission(gateway.max_steps, gateway.max_step_bytes, config.limits, decisions, clock)
        agents = Agents()
        infinite, speed, lengths = InfiniteCache(gateway.available_blocks), PrefillSpeed(), OutputLength()
        meter = GatewayMeter(config.metrics.max_workloads, parse_weights(config.engine.tenant_weights))
        self.codec = codec
        self.pool = self._pool = WorkerPool(directory, clock)
        self._feed = EventFeed(directory, decisions)
        self.peers = Peers(name)
        self._entries = EntryWriter(directory, self.peers, decisions, clock, capacity=2 * gateway.max_workflows)
        self._executor = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        watchers = Watchers(clock)

        def report(event: WorkflowEvent) -> None:
            self._feed.put(event)
            watchers.event(event)

        events = EventReporter(report, clock)
        self._teller = StepTeller(self._pool, decisions, clock)
        contexts = Contexts()
        answers = Answers(gateway.step_record_bytes)

        def forget(workflow: OpenWorkflow) -> None:
            answers.drop(workflow)
            if workflow.moved:
                self._feed.forget(workflow.id)

        self.lifecycle = WorkflowLifecycle(
            config=gateway,
            peers=self.peers,
            workflows=open_workflows,
            entries=self._entries,
            pool=self._pool,
            events=events,
            teller=self._teller,
            contexts=contexts,
            decisions=decisions,
            meter=meter,
            clock=clock,
            forget=forget,
        )
        self.workflows = WorkflowCalls(self.lifecycle, self.peers, decisions)
        self.mirror = IndexMirror(index, directory, clock)
        placement = Placement(
            self._pool,
            self.mirror,
            speed,
            contexts,
            decisions,
            parallelism=config.engine.max_running,
            worker_wait_s=gateway.worker_wait_s,
        )
        prompts = PromptReader(codec, self._executor)
        self.prompts = CountedPrompts(admission, prompts, self._pool, clock)
        self.caches = CacheServicer(
            self._pool, placement, self.prompts, open_workflows, self._entries, config.cache.lease_max_s
        )
        self.submission = Submission(
            admission=admission,
            workflows=self.lifecycle,
            prompts=prompts,
            reader=RequestReader(admission, prompts, self._pool, placement, infinite, config.engine.allow_forced_output),
            pool=self._pool,
            forwarding=Forwarding(self.peers, decisions, clock),
            answers=answers,
            relay=Relay(
                admission=admission,
                pool=self._pool,
                placement=placement,
                speed=speed,
                lengths=lengths,
                infinite=infinite,
                meter=meter,
                agents=agents,
                watchers=watchers,
                events=events,
                teller=self._teller,
                contexts=contexts,
                decisions=decisions,
                clock=clock,
                retry_limit=gateway.retry_limit,
            ),
            events=events,
            decisions=decisions,
            clock=clock,
            logs_prompts=config.logging.prompts,
        )
        everywhere = Everywhere(directory, self.peers)
        self.status = StatusReader(
            config, self._pool, open_workflows, admission, self._feed, meter, decisions, directory, everywhere
        )
        index_check = IndexCheck(index, self._pool, _INDEX_PAUSE_S + 2 * config.redis.flush_interval_s)
        self._inspection = InspectionServicer(
            open_workflows, self._feed.history, agents, index_check, watchers, clock, everywhere
        )
        self.figures = GatewayFigures(
            self._pool, open_workflows, admission, self._feed, meter, decisions, directory, self.mirror
        )
        self._background = Background()
        self._server = RpcServer(is_public=True)

    async def start(self, host: str, port: int) -> str:
        """Serves; port 0 takes a free one. Returns the address, host:port. Workers may join later.

        Raises:
            StartupError: the address cannot be bound.
        """
        descriptor = workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"]
        servicer = WorkflowServicer(self.workflows, self.submission, self.status)
        self._server.add(descriptor, workflow_pb2_grpc.add_WorkflowServiceServicer_to_server, servicer, _FOR_TENANTS)
        self._server.before_stop(servicer.step_calls.finish)
        inspection = inspection_pb2.DESCRIPTOR.services_by_name["InspectionService"]
        self._server.add(inspection, inspection_pb2_grpc.add_InspectionServiceServicer_to_server, self._inspection)
        cache = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
        self._server.add(cache, store_pb2_grpc.add_StoreServiceServicer_to_server, self.caches, _CACHES_FOR_TENANTS)
        await self._pool.refresh()
        address = await self._server.start(host, port, self.peers.serve_at)
        await self.lifecycle.take_over_all(self.peers.is_gone)
        self._background.start(self._pool.run(), "workers")
        self._background.start(self.mirror.run(), "index mirror")
        self._background.start(self._feed.run(), "events")
        self._background.start(self._entries.run(), "directory entries")
        self._background.start(self._entries.watch(self.lifecycle.workflows.all), "losses of the directory")
        self._background.start(self.lifecycle.run_leases(), "leases")
        self._background.start(
            GoneGateways(self._directory, self.peers, self.lifecycle).run(), "workflows of gateways that are gone"
        )
        return address

    async def wait(self) -> NoReturn:
        """Waits until a background task fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        """Cancels running steps and closes every connection. Workflows stay open for the next gateway."""
        async with AsyncExitStack() as stack:  # in reverse order, and the others even if one fails
            stack.callback(self._executor.shutdown, wait=False, cancel_futures=True)
            stack.push_async_callback(self._pool.close)
            stack.push_async_callback(self.peers.close)
            stack.push_async_callback(self._teller.close)
            stack.push_async_callback(self._background.stop)
            stack.push_async_callback(self._feed.finish)
            stack.push_async_callback(self._server.stop)
