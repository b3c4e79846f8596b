"""vLLM itself. The only module of this package that imports it."""

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, Self

import psutil
import torch
import vllm
from pydantic import ValidationError
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.kv_hints import KvHintAction, KvHintsEnvelope
from vllm.v1.metrics.loggers import StatLoggerBase

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import InvalidArgument, StartupError, Unavailable
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.integrations.engine_versions import check_version
from pbkv_cluster.integrations.vllm_worker.engine.arguments import check_block_size, engine_arguments
from pbkv_cluster.integrations.vllm_worker.engine.contract import EngineLoad, EngineRequest, EngineShape, PhaseTimes, Piece

log = logging.getLogger(__name__)

_WATCH_S = 0.5  # between two looks whether the engine still runs


class VllmEngine:
    """An `AsyncLLM`, whose engine runs in processes of its own."""

    def __init__(self, llm: AsyncLLM, load: EngineLoad, shape: EngineShape) -> None:
        self._llm = llm
        self.load = load
        self.shape = shape

    @classmethod
    def start(cls, config: Config, directory: Path, events: dict[str, Any]) -> Self:
        """Starts an engine, which takes as long as its model takes to load.

        Args:
            config: of the cluster.
            directory: of the model.
            events: `kv_events_config`, as vLLM takes it.

        Raises:
            InvalidArgument: this version of vLLM was not tested, or `vllm.args` is wrong; names the field.
            StartupError: vLLM cannot start; says why.
        """
        check_version("vllm", vllm.__version__, config.plugins.any_version)
        cpu_memory = psutil.virtual_memory().available if current_platform.is_cpu() else None
        if cpu_memory is not None and os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            raise StartupError("VLLM_CPU_KVCACHE_SPACE: use vllm.args.kv_cache_memory_bytes")
        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        arguments = engine_arguments(config, directory, known, cpu_memory, events)
        load = EngineLoad()
        try:
            if isinstance(transfer := arguments.get("kv_transfer_config"), dict):
                arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
            engine_config = AsyncEngineArgs(**arguments).create_engine_config()
        except ValidationError as error:
            raise StartupError("; ".join(_problem(each) for each in error.errors())) from error
        except (TypeError, ValueError, NotImplementedError) as error:
            raise StartupError(f"vllm.args: {error}") from error
        try:
            llm = AsyncLLM.from_vllm_config(engine_config, stat_loggers=[lambda *_: _LoadReader(load)], disable_log_stats=True)
        except Exception as error:  # of many kinds, and most have been logged by another process of vLLM
            raise StartupError(f"vLLM cannot start: {error}") from error
        shape = _shape(engine_config)
        try:
            check_block_size(shape.block_tokens)
        except InvalidArgument:
            llm.shutdown()
            raise
        return cls(llm, load, shape)

    async def warm_up(self) -> None:
        """Generates once, so that no step waits for what vLLM prepares at its first batch."""
        request = EngineRequest("warm-up", [0], {"max_tokens": 1, "temperature": 0.0, "detokenize": False}, "")
        async for _ in self.generate(request):
            pass

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """Runs a request. Closing the generator early aborts it.

        Raises:
            InvalidArgument: vLLM refuses the request.
            Unavailable: the engine has ended, or has failed at this request.
        """
        extra = {"kv_transfer_params": dict(request.transfer)} if request.transfer is not None else None
        sampling = SamplingParams(**request.sampling, output_kind=RequestOutputKind.DELTA, extra_args=extra)
        outputs: AsyncGenerator[RequestOutput, None] = self._llm.generate(
            tokens_input(request.tokens, cache_salt=request.salt or None),
            sampling,
            request.id,
            priority=-request.priority,  # vLLM serves low ones first
            kv_hints=_hints(request),
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield _piece(output, sampling.logprobs)
        except EngineDeadError as error:
            raise Unavailable("vLLM's engine has ended") from error
        except EngineGenerateError as error:
            raise Unavailable(f"vLLM has failed at the step: {error.__cause__ or error}") from error
        except (VLLMClientError, ValueError) as error:
            raise InvalidArgument("step", f"vLLM refuses it: {error}") from error

    async def abort(self, request_id: str) -> None:
        """Ends a request; without effect if it has ended."""
        await self._llm.abort(request_id)

    async def clear(self) -> bool:
        """Empties the prefix cache, and no tier of a KV connector; false if requests use it."""
        # A connector resets its tiers for new weights: PbkvConnector would then share nothing with other engines any more.
        return bool(await self._llm.reset_prefix_cache())

    async def wait(self) -> NoReturn:
        """Runs until the engine has ended.

        Raises:
            Unavailable: it has.
        """
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._llm.errored:
                raise Unavailable("vLLM's engine has ended; the log says why")

    async def stop(self) -> None:
        await asyncio.to_thread(self._llm.shutdown)


class _LoadReader(StatLoggerBase):
    """Keeps what the scheduler tells after each batch."""

    def __init__(self, load: EngineLoad) -> None:
        self._load = load

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:
        if scheduler_stats is not None:
            self._load.running = scheduler_stats.num_running_reqs
            self._load.batches += 1

    def log_engine_initialized(self) -> None:
        pass


def _shape(config: Any) -> EngineShape:
    """What vLLM says of itself, in its `VllmConfig`."""
    model, cache = config.model_config, config.cache_config
    dtype = str(model.dtype).removeprefix("torch.") if cache.cache_dtype == "auto" else str(cache.cache_dtype)
    return EngineShape(
        version=vllm.__version__,
        dtype=dtype,
        vocabulary=model.get_vocab_size(),
        max_context=model.max_model_len,
        block_tokens=cache.block_size,
        gpu_blocks=cache.num_gpu_blocks,
        block_bytes=_block_bytes(config),
        by_priority=config.scheduler_config.policy == "priority",
        takes_hints=config.kv_transfer_config is not None,
    )


def _block_bytes(config: Any) -> int:
    """Bytes of a block's KV in all layers; 0 where layers differ, or the data type has no fixed size."""
    model, cache = config.model_config, config.cache_config
    if model.is_hybrid or model.use_mla or model.get_sliding_window() is not None or cache.cache_dtype != "auto":
        return 0
    values = 2 * model.get_num_layers(config.parallel_config) * model.get_num_kv_heads(config.parallel_config)
    return int(values * model.get_head_size() * cache.block_size * torch.empty(0, dtype=model.dtype).element_size())


def _hints(request: EngineRequest) -> KvHintsEnvelope | None:
    ours = request.hints
    if ours is None:
        return None
    actions = [KvHintAction(each.action_id, each.action_type, each.action_version, each.payload) for each in ours.actions]
    return KvHintsEnvelope(ours.protocol_version, ours.message_id, actions)


def _piece(output: RequestOutput, most: int | None) -> Piece:
    """What is used of an output; `most` of the likeliest tokens are told, if any."""
    (completion,) = output.outputs
    logprobs: tuple[TokenLogprobs, ...] = ()
    if most is not None and completion.logprobs is not None:
        logprobs = tuple(
            _logprobs(token, each, most) for token, each in zip(completion.token_ids, completion.logprobs, strict=True)
        )
    times = output.metrics  # so far: the worker may end a step at any piece, where a stop string is complete
    return Piece(
        tokens=completion.token_ids,
        cached_tokens=output.num_cached_tokens or 0,
        logprobs=logprobs,
        finished=completion.finish_reason or "",
        times=None
        if times is None
        else PhaseTimes(times.queued_ts, times.scheduled_ts, times.first_token_ts, times.last_token_ts),
        preemptions=0 if times is None else times.num_preemptions,
    )


def _logprobs(token: int, found: Any, most: int) -> TokenLogprobs:
    ranked = sorted((each.rank, other, each.logprob) for other, each in found.items() if each.rank <= most)
    return TokenLogprobs(found[token].logprob, tuple((other, logprob) for _, other, logprob in ranked))


def _problem(error: Any) -> str:
    """One of pydantic's errors, with the field of vLLM's configuration that it is about."""
    return f"vllm.args.{'.'.join(map(str, error['loc'])) or 'all together'}: {error['msg'].removeprefix('Value error, ')}"
