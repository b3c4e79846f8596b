"""One GPU worker as a plain object: its model, its engine, its gRPC server and its link to the predictor."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path

import torch

from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE
from pbkv_cluster.core.background import first_failure
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.direct.receivers import Receivers
from pbkv_cluster.gpu_worker.direct.servicer import OutputServicer
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.facts import WorkerFacts
from pbkv_cluster.gpu_worker.figures import WorkerFigures
from pbkv_cluster.gpu_worker.kv.arena_region import ArenaRegion
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner, pick_device
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.gpu_worker.predictor_link.link import PredictorLink
from pbkv_cluster.gpu_worker.servicer import WorkerServicer
from pbkv_cluster.gpu_worker.sheltering import ShelterSeeker, Siblings
from pbkv_cluster.gpu_worker.store_servicer import StoreServicer
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.services import Services
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.block_source import BlockSource
from pbkv_cluster.store.sibling_source import SiblingSource

log = logging.getLogger(__name__)


class WorkerServer:
    """Runs steps that are requested over gRPC. Make, `start` and `stop` it within one event loop."""

    def __init__(
        self,
        config: Config,
        worker_id: str,
        clock: Clock,
        predictor: Services | None = None,
        host_store: Services | None = None,
        on_change: ChangeListener | None = None,
        blocks: BlockMap | None = None,
        node_id: str = "",
        peers: BlockSource | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        """Args:
        config: of the cluster.
        worker_id: its name in usage records and in the cluster index.
        clock: the engine's.
        predictor: finds the predictor; None: there is none, and so there are no forecasts.
        host_store: finds the node's host store; None: the host tier is the process's own memory.
        on_change: called, on the engine's thread, for every block that enters or leaves a tier.
        blocks: tells which workers hold what; None: nothing is fetched from others.
        node_id: of the worker's node, as in `blocks`.
        peers: reads the blocks of other nodes; None: they are not read.
        siblings: finds the node's other workers; None: they are not asked to shelter anything.
        """
        self._config = config
        self._worker_id = worker_id
        self._clock = clock
        self._on_change = on_change
        self._blocks = blocks
        self._node_id = node_id
        self._peers = peers
        self._siblings = siblings
        self._rpc = RpcServer()
        self._receivers = Receivers(clock)
        self._output_rpc = RpcServer(is_public=True, asks_for_keys=False)
        self._arena = ArenaRegion(worker_id, host_store) if host_store else None
        self._predictor = predictor
        self._predictor_link: PredictorLink | None = None
        self._shelter: ShelterSeeker | None = None
        self._thread: EngineThread | None = None
        self._runner: TorchRunner | None = None
        self._figures: WorkerFigures | None = None

    @property
    def thread(self) -> EngineThread:
        """The engine's thread: the way to look at the engine and its cache while they run."""
        assert self._thread is not None, "the worker was not started"
        return self._thread

    @property
    def figures(self) -> WorkerFigures:
        """The worker's metrics."""
        assert self._figures is not None, "the worker was not started"
        return self._figures

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not work as it should while the worker serves; empty: all does."""
        host = self._runner.host if self._runner is not None else None
        disk = self._runner.disk.disk if self._runner is not None and self._runner.disk is not None else None
        problems = [part.problem for part in (self._arena, host, disk) if part is not None]
        if self._runner is not None and self._runner.no_host_tier:
            problems.append(f"there is no host tier: {self._runner.no_host_tier}")
        if self._config.engine.disk_bytes and self._runner is not None and disk is None:
            problems.append("there is no disk tier, because there is no host tier through which blocks would go there")
        return tuple(problem for problem in problems if problem)

    async def start(self, host: str, port: int = 0) -> WorkerFacts:
        """Loads the model and serves. Port 0 takes a free one.

        Raises:
            StartupError: the model, the device or the port is not available, or the engine would run the model wrongly.
            InvalidArgument: the configuration names an unknown policy or attention back end.
        """
        if self._arena is not None:
            self._arena.keep()  # now: loading the weights may take longer than the lease of the last process's region
        device, model, codec = await asyncio.to_thread(self._load)
        self._runner = runner = TorchRunner(model, self._config.engine, device)
        memory = await self._take_host_memory(self._arena, runner) if self._arena else None
        huge_pages = self._config.host_store.huge_pages == "transparent"
        others = self._other_workers(runner)
        await asyncio.to_thread(runner.allocate, memory, huge_pages, self._disk_path(), others)
        engine = Engine(
            runner,
            self._config.engine,
            self._config.cache,
            self._clock,
            codec.decode,
            self._on_change,
            self._worker_id,
            codec.special_tokens,
            others or NOWHERE,
            DecisionLog(self._clock, self._config.cache.decision_log_bytes),
        )
        if others is not None:
            others.compute_block_s = lambda: _block_seconds(engine)
        if runner.host is not None:
            stored = {Tier.HOST: runner.host.stored()}
            if runner.disk is not None:
                stored[Tier.DISK] = runner.disk.stored(self._clock.wall())
            restored = await asyncio.to_thread(engine.cache.restore, stored)
            log.info("%d blocks of an earlier process found in host memory and on disk", restored)
            if device.type == "cuda":  # it must be pinned; elsewhere memory that no block needs is left to the machine
                runner.host.start()
        self._thread = EngineThread(engine, asyncio.get_running_loop())
        if self._predictor is not None:
            self._predictor_link = self._link_to_predictor(self._predictor, engine)
        self._thread.start()
        tiers_read = others.tiers_read if others is not None and runner.host is not None else ()
        if self._siblings is not None and Tier.SIBLING in tiers_read:
            self._shelter = ShelterSeeker(self._thread, self._siblings)
            self._shelter.start()
        disk = None if runner.disk is None else runner.disk.disk.disk
        memory_of_tiers = PoolMemory(model.shape.block_bytes, runner.host, disk, pins=device.type == "cuda")
        self._figures = WorkerFigures(
            self._thread, memory_of_tiers, runner.copies, self._predictor_link, lambda: self.problems, self._clock
        )
        output_address = await self._serve_output(host) if self._config.gateway.direct_output else ""
        address = await self._serve(host, port, model.namespace(), memory_of_tiers)
        return WorkerFacts(
            address,
            model.namespace(),
            model.vocabulary,
            engine.max_context,
            runner.gpu_blocks,
            runner.host_blocks,
            model.shape.block_bytes,
            output_address=output_address,
            reads_siblings=Tier.SIBLING in tiers_read,
            reads_peers=Tier.REMOTE in tiers_read,
        )

    async def _take_host_memory(self, arena: ArenaRegion, runner: TorchRunner) -> memoryview | None:
        """Memory for the host tier. If its size was not configured, the tier has what the node can give, or what an earlier
        process of this worker had; where there can be no tier, none.
        """
        layout = runner.host_layout
        is_configured = self._config.engine.host_blocks >= 0 or not layout.slots
        memory = await arena.take(layout.size if layout.slots else 0, may_be_less=not is_configured)
        if not is_configured and not arena.problem:
            # All that the region has room for: an earlier process's blocks are found only where the layout is as it made it.
            runner.host_blocks = layout.slots_in(len(memory) if memory else 0)
        return memory if runner.host_blocks else None

    def _disk_path(self) -> Path | None:
        """The file of this worker's disk tier; None: it has none."""
        engine = self._config.engine
        name = f"{self._config.cluster.name}-{self._worker_id}.blocks".replace("/", "_")
        return Path(engine.disk_path, name) if engine.disk_bytes else None

    def _other_workers(self, runner: TorchRunner) -> OtherWorkers | None:
        """The workers whose blocks this one can read: those of its node, where its host tier is a part of the arena, and those
        of other nodes.
        """
        file, engine = self._arena.file if self._arena is not None else None, self._config.engine
        sources: dict[Tier, BlockSource] = {}
        if file is not None and engine.read_siblings:
            sources[Tier.SIBLING] = SiblingSource(file, runner.model_digest, runner.host_layout.payload_bytes)
        if self._peers is not None and engine.read_peers:
            sources[Tier.REMOTE] = self._peers
        if self._blocks is None or not sources:
            return None
        return OtherWorkers(self._blocks, self._node_id, self._worker_id, sources)

    def _load(self) -> tuple[torch.device, LoadedModel, TextCodec]:
        device = pick_device(self._config.engine.device)
        if device.type == "cpu":
            torch.set_num_threads(self._config.engine.threads)
        model = load_model(self._config.model, device, self._config.engine.attention)
        return device, model, TextCodec.load(self._config.model.path, self._config.model.revision)

    def _link_to_predictor(self, predictor: Services, engine: Engine) -> PredictorLink:
        workflows = engine.cache.workflows
        link = PredictorLink(predictor, self.thread, self._worker_id, workflows.learns)
        if link.access_logs is not None:
            workflows.on_ended = link.access_logs.workflow_ended
        link.start()
        return link

    async def _serve(self, host: str, port: int, namespace: Namespace, memory: PoolMemory) -> str:
        servicer = WorkerServicer(
            self.thread, namespace, self._worker_id, self._predictor_link, memory, self._receivers, self._clock
        )
        self._rpc.add(
            worker_pb2.DESCRIPTOR.services_by_name["WorkerService"],
            worker_pb2_grpc.add_WorkerServiceServicer_to_server,
            servicer,
        )
        self._rpc.before_stop(servicer.step_calls.finish)
        self._rpc.add(
            store_pb2.DESCRIPTOR.services_by_name["StoreService"],
            store_pb2_grpc.add_StoreServiceServicer_to_server,
            StoreServicer(self.thread, namespace, memory, self._worker_id, self._clock),
        )
        return await self._rpc.start(host, port)

    async def _serve_output(self, host: str) -> str:
        """A port of its own: the other one is for members, which may have to show certificates."""
        descriptor = worker_pb2.DESCRIPTOR.services_by_name["OutputService"]
        servicer = OutputServicer(self._receivers)
        self._output_rpc.add(descriptor, worker_pb2_grpc.add_OutputServiceServicer_to_server, servicer)
        self._output_rpc.before_stop(self._receivers.disconnect_all)
        return await self._output_rpc.start(host, 0)

    async def residency(self) -> Mapping[bytes, Residency]:
        """The key of every cached block, and where it lies.

        Raises:
            Unavailable: the engine has ended.
        """
        return await self.thread.call(lambda engine: engine.cache.tiers.residency())

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        parts = [asyncio.shield(self.thread.failed)]
        parts += [
            asyncio.ensure_future(part.wait())
            for part in (self._predictor_link, self._arena, self._shelter)
            if part is not None
        ]
        await first_failure(*parts)

    async def stop(self) -> None:
        """Stops the server, the engine and everything that belongs to them. Running steps fail."""
        async with AsyncExitStack() as stack:  # stops every part, even if one fails, in reverse order
            if self._arena is not None:
                stack.push_async_callback(self._arena.stop)
            if self._runner is not None:
                stack.push_async_callback(asyncio.to_thread, self._runner.close)
            if self._thread is not None:
                stack.push_async_callback(self._thread.stop)
            if self._predictor_link is not None:
                stack.push_async_callback(self._predictor_link.stop)
            if self._shelter is not None:
                stack.push_async_callback(self._shelter.stop)
            stack.push_async_callback(self._output_rpc.stop)
            stack.push_async_callback(self._rpc.stop)


def _block_seconds(engine: Engine) -> float:
    """That the prefill of a block takes; infinite before the first one."""
    return BLOCK_TOKENS / engine.prefill_tokens_per_s if engine.prefill_tokens_per_s else inf
