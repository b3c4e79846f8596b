"""The options of the connector, and what it refuses at the start: better not to run than to run with wrong KV."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.engine_store import StoreSettings

# Versions of vLLM, by their first two numbers, whose hooks have been compared with ours; see docs/integrations.md.
TESTED_VERSIONS = ("0.32", "0.33")


class Refused(ValueError):
    """The connector cannot serve this engine. vLLM shows the message and ends."""


@dataclass(frozen=True, slots=True)
class ConnectorOptions:
    """`kv_connector_extra_config`: options of the connector, and all those of the store (`StoreSettings`)."""

    store: StoreSettings
    force_version: bool  # run with a version of vLLM that has not been tested
    model_revision: str  # what tells these weights from others; empty: found out from the files
    save_outputs: bool  # store blocks that contain generated tokens, too
    min_load_tokens: int  # fewer are computed instead

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Takes vLLM's dictionary.

        Raises:
            Refused: an option is wrong or unknown; names it.
        """
        rest = dict(options)
        try:
            force_version = _taken(rest, "force_version", False)
            model_revision = _taken(rest, "model_revision", "")
            save_outputs = _taken(rest, "save_outputs", True)
            min_load_tokens = _taken(rest, "min_load_tokens", 1)
            store = StoreSettings.of(rest)
        except InvalidArgument as error:
            raise Refused(f"kv_connector_extra_config: {error}") from error
        return cls(store, force_version, model_revision, save_outputs, min_load_tokens)


def check_version(version: str, force: bool) -> None:
    """Raises:
    Refused: the connector has not been tested with this version of vLLM.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if force or (found and found[0] in TESTED_VERSIONS):
        return
    raise Refused(
        f"PbkvConnector has been tested with vLLM {', '.join(TESTED_VERSIONS)}, and this is {version}; "
        'to run nevertheless, set "force_version": true in kv_connector_extra_config'
    )


def check_engine(config: Any, kv_cache_config: Any) -> None:
    """Checks what vLLM has been told to do.

    Args:
        config: `VllmConfig`.
        kv_cache_config: `KVCacheConfig`.

    Raises:
        Refused: the connector cannot serve that; says what to change.
    """
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    if transfer.kv_load_failure_policy != "recompute":
        raise Refused(
            f"kv_load_failure_policy: is {transfer.kv_load_failure_policy!r}, so that a lost block would fail its request; "
            'set "kv_load_failure_policy": "recompute" in --kv-transfer-config'
        )
    if not config.cache_config.enable_prefix_caching:
        raise Refused("enable_prefix_caching: is off, but the connector finds prefixes; switch it on")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Refused(
                f"{name}: is {getattr(parallel, name)}, which spreads a block's tokens over ranks; only 1 is supported"
            )
    if getattr(parallel, "nnodes", 1) > 1:
        raise Refused(f"nnodes: is {parallel.nnodes}, but all ranks of an engine must use the store of one node")
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise Refused(f"hybrid models are not supported: this one has {len(groups)} groups of KV cache, not 1")
    spec = groups[0].kv_cache_spec
    specs = list(getattr(spec, "kv_cache_specs", {}).values()) or [spec]
    kinds = sorted({type(each).__name__ for each in specs if not _is_full_attention(each)})
    if kinds:
        raise Refused(f"only models with full attention are supported; the KV cache of this one is {', '.join(kinds)}")


def _is_full_attention(spec: Any) -> bool:
    """Whether a block's KV depends on nothing but the tokens up to its end, and stays until its request ends."""
    is_full = any(base.__name__ == "FullAttentionSpec" for base in type(spec).__mro__)
    return is_full and not getattr(spec, "sliding_window", None) and not getattr(spec, "attention_chunk_size", None)


def _taken(options: dict[str, Any], name: str, default: Any) -> Any:
    value = options.pop(name, default)
    if type(value) is not type(default):
        raise InvalidArgument(name, f"must be of type {type(default).__name__}, got {value!r}")
    if isinstance(value, int) and value < 0:
        raise InvalidArgument(name, f"must not be negative, got {value}")
    return value
