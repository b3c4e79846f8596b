"""vLLM's engine arguments, from our settings and from `vllm.args`."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.workflow.logprobs import MAX_TOP

_SETTINGS = {
    "dtype": "model.dtype",
    "gpu_memory_utilization": "engine.gpu_memory_share",
    "max_model_len": "model.max_context_tokens",
    "max_num_batched_tokens": "engine.max_batch_tokens",
    "max_num_queued_reqs": "engine.max_waiting",
    "max_num_seqs": "engine.max_running",
    "model": "model.path",
    "revision": "model.revision",
    "tokenizer": "model.path",
    "tokenizer_revision": "model.revision",
}
"""Arguments that settings of ours decide."""

_WORKERS_OWN = {
    "data_parallel_size": "a worker is one engine: start more workers (cluster.workers)",
    "disable_log_stats": "the worker needs vLLM's statistics",
    "enable_prefix_caching": "it is on, as steps are placed by what is cached",
    "kv_events_config": "the worker follows vLLM's KV events; it publishes its own at kv_events.endpoint",
    "pipeline_parallel_size": "a worker has one GPU",
    "skip_tokenizer_init": "the worker turns tokens into text",
    "tensor_parallel_size": "a worker has one GPU",
}
"""Arguments that are not to be changed, and why."""

_CPU_SHARE = 4  # as our engine, a worker on a CPU takes a quarter of `engine.gpu_memory_share` of the memory that is free
_SIZES = ("kv_cache_memory_bytes", "num_gpu_blocks_override")  # arguments that decide how large vLLM's cache is


def engine_arguments(
    config: Config, directory: Path, known: Collection[str], cpu_memory: int | None, events: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs`.

    Args:
        config: of the cluster.
        directory: of the model.
        known: names of the arguments that this version of vLLM has.
        cpu_memory: bytes that are free, if vLLM computes on the CPU and nothing else says how large its cache is; else None.
        events: `kv_events_config`, as vLLM takes it.

    Raises:
        InvalidArgument: `vllm.args` names an argument that vLLM does not have, or that is not to be set there; names it.
    """
    given = config.vllm.args
    for name in given:
        _check(name, known)
    model, engine = config.model, config.engine
    arguments: dict[str, Any] = {
        "model": str(directory),
        "dtype": model.dtype if model.dtype != "auto" or cpu_memory is None else "float32",
        "max_num_seqs": engine.max_running,
        "max_num_batched_tokens": engine.max_batch_tokens,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "disable_log_stats": True,  # the loggers of its own; ours is added
        "max_logprobs": MAX_TOP,
        "generation_config": "vllm",  # no defaults of the checkpoint: a step says all that it wants
        "kv_events_config": events,
    }
    if model.max_context_tokens:
        arguments["max_model_len"] = model.max_context_tokens
    if cpu_memory is None:
        arguments["gpu_memory_utilization"] = engine.gpu_memory_share
    elif not any(size in given for size in _SIZES):
        arguments["kv_cache_memory_bytes"] = int(cpu_memory * engine.gpu_memory_share / _CPU_SHARE)
    return arguments | dict(given)


def check_block_size(block_tokens: int) -> None:
    """Checks that a block of vLLM is some of ours.

    Raises:
        InvalidArgument: it is not.
    """
    if block_tokens % BLOCK_TOKENS:
        raise InvalidArgument(
            "vllm.args.block_size", f"must be a multiple of {BLOCK_TOKENS}, in which the cluster counts; it is {block_tokens}"
        )


def _check(name: str, known: Collection[str]) -> None:
    field = f"vllm.args.{name}"
    if (setting := _SETTINGS.get(name)) is not None:
        raise InvalidArgument(field, f"is what {setting} sets")
    if (reason := _WORKERS_OWN.get(name)) is not None:
        raise InvalidArgument(field, f"is not to be set: {reason}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise InvalidArgument(field, f"vLLM has no such engine argument{f'; did you mean {close[0]}?' if close else ''}")
