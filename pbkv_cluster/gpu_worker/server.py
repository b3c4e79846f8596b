"""One GPU worker as a plain object: model, engine, its gRPC server, and what it says to the predictor and hears from it."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import torch

from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.core.background import first_failure
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.kv.arena_region import ArenaRegion
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner, pick_device
from pbkv_cluster.gpu_worker.predictor_link.access_logs import AccessReporter
from pbkv_cluster.gpu_worker.predictor_link.forecasts import AddressSource, ForecastListener
from pbkv_cluster.gpu_worker.servicer import StoreServicer, WorkerServicer
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What others need to know of a running worker."""

    address: str
    namespace: Namespace  # without a tenant
    vocabulary: int
    max_context: int  # tokens
    gpu_blocks: int
    host_blocks: int
    block_bytes: int


class Worker:
    """Runs steps that come over gRPC."""

    def __init__(
        self,
        config: Config,
        worker_id: str,
        clock: Clock,
        predictor: AddressSource | None = None,
        host_store: AddressSource | None = None,
        on_change: ChangeListener | None = None,
    ) -> None:
        """Args:
        config: of the cluster.
        worker_id: its name in usage records and the index.
        clock: the engine's.
        predictor: tells where forecasts come from; None: there are none.
        host_store: tells where to lease host memory; None: the host tier is the process's own memory.
        on_change: told of every block that enters or leaves a tier; called on the engine's thread.
        """
        self._config = config
        self._worker_id = worker_id
        self._clock = clock
        self._on_change = on_change
        self._server = RpcServer()
        self._arena = ArenaRegion(worker_id, host_store) if host_store else None
        self._predictor = predictor
        self._listener: ForecastListener | None = None
        self._reporter: AccessReporter | None = None
        self._thread: EngineThread | None = None

    async def start(self, host: str, port: int = 0) -> WorkerFacts:
        """Loads the model and serves.

        Raises:
            StartupError: the model, the device or the port cannot be had.
            InvalidArgument: the configuration names an unknown policy or attention.
        """
        device, model, codec = await asyncio.to_thread(self._load)
        runner = TorchRunner(model, self._config.engine, device)
        host_bytes = runner.host_blocks * model.shape.block_bytes
        memory = await self._arena.take(host_bytes) if self._arena else None
        await asyncio.to_thread(runner.allocate, memory)
        engine = Engine(
            runner, self._config.engine, self._config.cache, self._clock, codec.decode, self._on_change, self._worker_id
        )
        self._thread = EngineThread(engine, asyncio.get_running_loop())
        if self._predictor is not None:
            learns = engine.cache.workflows.learns
            self._listener = ForecastListener(self._predictor, self._thread, self._worker_id, learns)
            self._listener.start()
            if learns:
                self._reporter = AccessReporter(self._predictor, self._thread)
                engine.cache.workflows.on_ended = self._reporter.ended
                self._reporter.start()
        self._thread.start()
        servicer = WorkerServicer(
            self._thread, model.namespace(), self._worker_id, self._listener, self._reporter, model.shape.block_bytes
        )
        self._server.add(
            worker_pb2.DESCRIPTOR.services_by_name["WorkerService"],
            worker_pb2_grpc.add_WorkerServiceServicer_to_server,
            servicer,
        )
        self._server.add(
            store_pb2.DESCRIPTOR.services_by_name["StoreService"],
            store_pb2_grpc.add_StoreServiceServicer_to_server,
            StoreServicer(self._thread, model.namespace(), model.shape.block_bytes),
        )
        address = await self._server.start(host, port)
        if self._arena is not None:
            self._arena.keep(address)
        return WorkerFacts(
            address,
            model.namespace(),
            model.vocabulary,
            engine.max_context,
            runner.gpu_blocks,
            runner.host_blocks,
            model.shape.block_bytes,
        )

    def _load(self) -> tuple[torch.device, LoadedModel, TextCodec]:
        device = pick_device(self._config.engine.device)
        if device.type == "cpu":
            torch.set_num_threads(self._config.engine.threads)
        model = load_model(self._config.model, device)
        return device, model, TextCodec.load(self._config.model.path, self._config.model.revision)

    async def residency(self) -> Mapping[bytes, frozenset[Tier]]:
        """Every cached block's key and the tiers that hold it.

        Raises:
            Unavailable: the engine has ended.
        """
        assert self._thread is not None, "the worker was not started"
        return await self._thread.call(lambda engine: engine.cache.residency())

    async def wait(self) -> None:
        """Returns never while all is well.

        Raises:
            Exception: what ended the engine, or a task that it cannot do without.
        """
        assert self._thread is not None, "the worker was not started"
        parts = [asyncio.shield(self._thread.failed)]
        beside = (self._listener, self._reporter, self._arena)
        parts += [asyncio.ensure_future(part.wait()) for part in beside if part is not None]
        await first_failure(*parts)

    async def stop(self) -> None:
        """Ends the server, the engine and all that belongs to them. Steps that run fail."""
        async with AsyncExitStack() as stack:  # whatever one part says, the others are stopped; the last entered first
            if self._arena is not None:
                stack.push_async_callback(self._arena.stop)
            if self._thread is not None:
                stack.push_async_callback(self._thread.stop)
            for task in (self._listener, self._reporter):
                if task is not None:
                    stack.push_async_callback(task.stop)
            stack.push_async_callback(self._server.stop)
