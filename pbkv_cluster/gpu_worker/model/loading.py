"""Loads a model: any decoder-only causal model of `transformers`, from a local directory or a hub id."""

import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.model_path import local_model
from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION, install
from pbkv_cluster.gpu_worker.kv.storage import KvShape
from pbkv_cluster.gpu_worker.model.hidden_state import captured

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose attention reads and writes our block pool."""

    module: Any  # a causal language model of `transformers`
    name: str
    revision: str  # digest of configuration and weights
    shape: KvShape
    vocabulary: int
    max_context: int  # tokens
    eos: frozenset[int]
    hidden: int  # values of the hidden state that its head reads; 0: the model does not expose it

    def namespace(self) -> Namespace:
        """The namespace of its blocks, without a tenant."""
        return Namespace(self.name, self.revision, str(self.shape.dtype).removeprefix("torch."), self.shape.layout())


def load_model(config: ModelConfig, device: torch.device) -> LoadedModel:
    """Loads the model that `config` names onto a device.

    Raises:
        StartupError: there is no such model, or the engine cannot run it.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    install()
    directory = resolve(config.path, config.revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=_dtype(config, device), output_loading_info=True)
        module, report = loaded
        module.set_attn_implementation(IMPLEMENTATION)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise StartupError(f"model.path: no causal language model can be loaded from {config.path!r}: {error}") from error
    if missing := sorted(report["missing_keys"]):  # `transformers` has filled them with random values
        raise StartupError(f"model.path: {config.path!r} lacks weights of a causal language model: {', '.join(missing[:3])} …")
    module.eval().requires_grad_(False).to(device)
    shape, hidden = _probe(module, device, config.path)
    limit = getattr(module.config, "max_position_embeddings", None) or 1 << 20
    if config.max_context_tokens > limit:
        raise StartupError(f"model.max_context_tokens: {config.max_context_tokens} is more than the model's {limit}")
    return LoadedModel(
        module=module,
        name=config.path,
        revision=fingerprint(directory),
        shape=shape,
        vocabulary=module.config.vocab_size,
        max_context=config.max_context_tokens or limit,
        eos=_eos(module),
        hidden=hidden,
    )


def resolve(path: str, revision: str) -> Path:
    """The local directory of a model. A model on the hub is downloaded, unless it is in the hub's local cache.

    Raises:
        StartupError: there is no such model.
    """
    local = local_model(path)
    if local is not None:
        return local
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (OSError, ValueError) as error:
        raise StartupError(f"model.path: {path!r} is no directory, and cannot be had from the hub: {error}") from error


def fingerprint(directory: Path) -> str:
    """Digest of a model's configuration and weights."""
    digest = xxhash.xxh3_128()
    files = sorted([directory / "config.json", *directory.glob("*.safetensors"), *directory.glob("*.bin")])
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size};".encode())
        with file.open("rb") as stream:
            while part := stream.read(16 << 20):
                digest.update(part)
    return digest.hexdigest()


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype | str:
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    return torch.float32 if device.type == "cpu" else "auto"


def _eos(module: Any) -> frozenset[int]:
    ids = module.generation_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])


class _Probe:
    """Stands in for a batch, and records the shape and dtype of each layer's KV."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Size, torch.Size, torch.dtype]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        self.seen[layer] = (key.shape, value.shape, key.dtype)
        return query.new_zeros(*query.shape[:2], value.shape[2])


def _probe(module: Any, device: torch.device, path: str) -> tuple[KvShape, int]:
    """Runs one token through the model to see the KV that it makes, instead of guessing it from the configuration.

    Returns the shape of the KV, and the size of a hidden state, 0 if the model does not expose it.
    """
    probe = _Probe()
    layers = module.config.num_hidden_layers
    if getattr(module.config, "attention_chunk_size", None):
        raise StartupError(f"model.path: the engine cannot run {path!r}: its attention is chunked")
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    try:
        with torch.inference_mode(), captured(module) as states:
            module(input_ids=ids, position_ids=ids, use_cache=False, paged=probe)
    except (NotImplementedError, TypeError, AttributeError, RuntimeError) as error:
        raise StartupError(f"model.path: the engine cannot run {path!r}: {error}") from error
    kinds = set(probe.seen.values())
    if sorted(probe.seen) != list(range(layers)) or len(kinds) != 1:
        raise StartupError(
            f"model.path: the engine cannot run {path!r}: it needs attention with equal KV in each of the {layers} layers, "
            f"found it in {len(probe.seen)}, of {len(kinds)} kinds"
        )
    key, value, dtype = kinds.pop()
    if key != value:
        raise StartupError(f"model.path: the engine cannot run {path!r}: its keys are {tuple(key)}, its values {tuple(value)}")
    if "position_ids" not in inspect.signature(module.forward).parameters:
        raise StartupError(
            f"model.path: the engine cannot run {path!r}: it cannot be told where in a sequence its tokens stand"
        )
    return KvShape(layers=layers, kv_heads=key[1], head_dim=key[2], dtype=dtype), states[0].shape[-1] if states else 0
