"""One vLLM worker as a plain object: vLLM's engine, its KV events, the gRPC server and the link to the predictor."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pbkv_cluster.core.background import Background, first_failure_of
from pbkv_cluster.core.blocks import BlockLabel, Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.facts import WorkerFacts
from pbkv_cluster.gpu_worker.model.end_tokens import end_tokens
from pbkv_cluster.gpu_worker.model.loading import fingerprint, resolve
from pbkv_cluster.integrations.kv_hints import HintMaker
from pbkv_cluster.integrations.vllm_worker.environment import event_sockets, set_environment
from pbkv_cluster.integrations.vllm_worker.figures import VllmFigures
from pbkv_cluster.integrations.vllm_worker.held_blocks import HeldBlocks
from pbkv_cluster.integrations.vllm_worker.hints import ForecastFeed, HintBook
from pbkv_cluster.integrations.vllm_worker.servicer import VllmServicer
from pbkv_cluster.integrations.vllm_worker.steps import StepRunner, TextRules
from pbkv_cluster.integrations.vllm_worker.store_servicer import VllmStoreServicer
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.services import Services
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.kv_events.event_subscriber import KvEventSubscriber

log = logging.getLogger(__name__)

_LAYOUT = "vllm"  # of the namespace: nobody but vLLM reads these blocks


class VllmServer:
    """Runs steps that are requested over gRPC. Make, `start` and `stop` it within one event loop."""

    def __init__(
        self,
        config: Config,
        worker_id: str,
        clock: Clock,
        folder: Path,
        predictor: Services | None,
        on_change: Callable[[BlockLabel, Residency], None],
    ) -> None:
        """Args:
        config: of the cluster.
        worker_id: its name in usage records and in the cluster index.
        clock: for spans, forecasts and replays of events.
        folder: of this process alone, for sockets.
        predictor: finds the predictor; None: there is none.
        on_change: told of each block that enters or leaves a tier.
        """
        self._config = config
        self._worker_id = worker_id
        self._clock = clock
        self._folder = folder
        self._predictor = predictor
        self._on_change = on_change
        self._stack = AsyncExitStack()
        self._background = Background()
        self._held: HeldBlocks | None = None
        self._events: KvEventSubscriber | None = None
        self._engine: Any = None
        self._figures: VllmFigures | None = None

    @property
    def figures(self) -> VllmFigures:
        """The worker's metrics."""
        assert self._figures is not None, "the worker was not started"
        return self._figures

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not work as it should while the worker serves; empty: all does."""
        held, events = self._held, self._events
        if held is None or events is None or not events.batches or (events.is_exact and held.is_complete):
            return ()
        return ("what vLLM has cached is not known exactly: KV events were missed, or told of unknown blocks",)

    async def residency(self) -> Mapping[bytes, Residency]:
        """The key of every block that vLLM is known to hold, and where it lies."""
        assert self._held is not None, "the worker was not started"
        return self._held.residency()

    async def start(self, host: str, port: int = 0) -> WorkerFacts:
        """Starts vLLM with the model, and serves. Port 0 takes a free one.

        Raises:
            StartupError: vLLM, the model or the port is not available.
            InvalidArgument: this version of vLLM was not tested, or `vllm.args` is wrong; names the field.
        """
        events = event_sockets(self._folder)
        set_environment(self._config, host, self._folder, os.environ)
        engine_module = await asyncio.to_thread(_import_engine)
        config = self._config
        directory = await asyncio.to_thread(resolve, config.model.path, config.model.revision)
        codec = await asyncio.to_thread(TextCodec.load, config.model.path, config.model.revision)
        engine = self._engine = await asyncio.to_thread(
            engine_module.VllmEngine.start,
            config,
            directory,
            {"enable_kv_cache_events": True, "publisher": "zmq", **events},
        )
        self._stack.push_async_callback(engine.stop)
        shape = engine.shape
        namespace = Namespace(config.model.path, await asyncio.to_thread(fingerprint, directory), shape.dtype, _LAYOUT)
        held = self._held = HeldBlocks(namespace, self._on_change)
        self._events = KvEventSubscriber(events["endpoint"], held, self._clock, replay_endpoint=events["replay_endpoint"])
        self._stack.push_async_callback(self._background.stop)
        self._background.start(self._events.run(), "KV events of vLLM")
        await engine.warm_up()
        hints = HintBook(HintMaker(), self._clock, config.vllm.max_workflows)
        feed = None if self._predictor is None else ForecastFeed(self._predictor, self._worker_id, hints)
        if feed is not None:
            self._background.start(feed.run(), "forecasts")
        ends = await asyncio.to_thread(_ends, directory, shape.vocabulary, config.model.chat_template)
        text = TextRules(codec.decode, codec.special_tokens, ends)
        steps = StepRunner(engine, held, hints, text, config.engine, self._worker_id)
        self._figures = VllmFigures(steps, engine, held, hints, feed, lambda: self.problems, self._clock)
        servicer = VllmServicer(steps, engine, held, hints, feed, namespace, self._worker_id, self._clock)
        address = await self._serve(host, port, servicer, VllmStoreServicer(engine, held))
        ours = shape.block_tokens // BLOCK_TOKENS
        return WorkerFacts(
            address,
            namespace,
            shape.vocabulary,
            shape.max_context,
            gpu_blocks=shape.gpu_blocks * ours,
            host_blocks=0,
            block_bytes=shape.block_bytes // ours,
            engine=f"vllm {shape.version}",
        )

    async def _serve(self, host: str, port: int, servicer: VllmServicer, store: VllmStoreServicer) -> str:
        rpc = RpcServer()
        rpc.add(
            worker_pb2.DESCRIPTOR.services_by_name["WorkerService"],
            worker_pb2_grpc.add_WorkerServiceServicer_to_server,
            servicer,
        )
        rpc.before_stop(servicer.step_calls.finish)
        rpc.add(store_pb2.DESCRIPTOR.services_by_name["StoreService"], store_pb2_grpc.add_StoreServiceServicer_to_server, store)
        self._stack.push_async_callback(rpc.stop)
        return await rpc.start(host, port)

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        await first_failure_of(self._engine.wait, self._background.failure)

    async def stop(self) -> None:
        """Stops the server, the engine and everything that belongs to them. Running steps fail."""
        await self._stack.aclose()


def _import_engine() -> Any:
    try:
        from pbkv_cluster.integrations.vllm_worker.engine import llm
    except ImportError as error:
        raise StartupError(f"vllm.python: vLLM cannot be imported there: {error}") from error
    return llm


def _ends(directory: Path, vocabulary: int, chat_template: str) -> frozenset[int]:
    """Tokens after which an output is complete, as for our own engine."""
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(directory)
    except OSError:  # the checkpoint has no such file
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(directory))
    return end_tokens(generation, vocabulary, directory, chat_template)
