"""Loads a model: any decoder-only causal model of `transformers`, from a local directory or a hub id."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.model_path import local_model
from pbkv_cluster.gpu_worker.attention import IMPLEMENTATION, choose, install
from pbkv_cluster.gpu_worker.kv.storage import KvShape
from pbkv_cluster.gpu_worker.model.end_tokens import end_tokens
from pbkv_cluster.gpu_worker.model.inference_only import WithoutReferences, use_inference_only
from pbkv_cluster.gpu_worker.model.probe import probe
from pbkv_cluster.gpu_worker.model.refusal import refusal
from pbkv_cluster.gpu_worker.model.rotary import RotarySwitch, find_rotary_switch
from pbkv_cluster.gpu_worker.model.trial.self_test import self_test

_UNLIMITED = 1 << 20  # tokens, of a model that states no limit


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
    rotary: RotarySwitch | None  # None: its rotary factors are the same for all lengths
    hidden: int  # values of the hidden state that its head reads; 0: the model does not expose it

    def namespace(self) -> Namespace:
        """The namespace of its blocks, without a tenant."""
        return Namespace(
            self.name,
            self.revision,
            str(self.shape.dtype).removeprefix("torch."),
            self.shape.layout(),
            rotary_switch=self.rotary.tokens if self.rotary else 0,
        )


def load_model(config: ModelConfig, device: torch.device, attention: str = "auto") -> LoadedModel:
    """Loads the model that `config` names onto a device.

    Args:
        config: names the model.
        device: for the weights.
        attention: back end with which the engine will run it.

    Raises:
        StartupError: there is no such model, or the engine cannot run it.
        InvalidArgument: an unknown attention back end.
    """
    if device.type == "cpu":  # where a worker's memory is small, and no kernel of a model's is compiled
        use_inference_only()
    install()
    directory = resolve(config.path, config.revision)
    module = _weights(config, directory, device)
    text = module.config.get_text_config(decoder=True)
    own = text._attn_implementation
    module.set_attn_implementation(IMPLEMENTATION)
    if text._attn_implementation != IMPLEMENTATION:
        raise refusal(config.path, "its attention is built into its layers and cannot be replaced")
    max_context = _max_context(config, text)
    rotary = find_rotary_switch(module, max_context)
    probed = probe(module, device, config.path, max_context, rotary)
    if config.self_test:
        self_test(module, probed, rotary, choose(attention, device, probed.shape.dtype), own, config.path, max_context, device)
    return LoadedModel(
        module=module,
        name=config.path,
        revision=fingerprint(directory),
        shape=probed.shape,
        vocabulary=text.vocab_size,
        max_context=max_context,
        eos=end_tokens(module.generation_config, text.vocab_size, directory, config.chat_template),
        rotary=rotary,
        hidden=probed.hidden,
    )


def _weights(config: ModelConfig, directory: Path, device: torch.device) -> Any:
    """The model on its device, with all of the checkpoint's weights and no others."""
    try:
        module, report = _from_pretrained(directory, _dtype(config, device))
    except Exception as error:
        raise StartupError(
            f"model.path: no causal language model can be loaded from {config.path!r}: {_loading_problem(error)}"
        ) from error
    if missing := sorted(report["missing_keys"]):  # `transformers` has filled them with random values
        raise StartupError(f"model.path: {config.path!r} lacks weights of a causal language model: {', '.join(missing[:3])} …")
    if unused := sorted(report["unexpected_keys"]):
        raise StartupError(
            f"model.path: {config.path!r} holds {len(unused)} weights that the model in its config.json does not have: "
            f"{', '.join(unused[:3])} …"
        )
    module.eval().requires_grad_(False).to(device)
    if module.dtype == torch.float64:
        module.set_experts_implementation("eager")  # the kernels for mixtures of experts have no float64
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise StartupError(f"model.path: {config.path!r} has damaged weights: {name} holds values that are not finite")
    return module


def _from_pretrained(directory: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The model, and a report on its weights."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    load = partial(auto.from_pretrained, directory, dtype=dtype, output_loading_info=True)
    try:
        with WithoutReferences():
            module, report = load()
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        module, report = load()  # it combines its tables with tensors that have shapes only; no weights are read yet
    return module, report


def _loading_problem(error: Exception) -> str:
    """Why a checkpoint does not load, in words about it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    text = str(error)
    if isinstance(error, StrictDataclassError):
        field = re.match(r"Validation error for field '(\w+)'", text)
        return f"its config.json has an impossible {field[1]}" if field else text.rpartition("ValueError: ")[2]
    if isinstance(error, RuntimeError) and "mismatch" in text:
        return "its weights do not have the shapes that its config.json states"
    if "Unrecognized configuration class" in text:
        return "transformers has no such model of its kind"
    if isinstance(error, OSError | ValueError | SafetensorError) and text:
        return text
    return "its config.json lacks fields or has values with which no model can be built"


def _max_context(config: ModelConfig, text: Any) -> int:
    """Most tokens of prompt and output together."""
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        limit = _UNLIMITED
    if not isinstance(limit, int) or limit < 1:
        raise StartupError(f"model.path: {config.path!r} has room for no token: max_position_embeddings is {limit}")
    if config.max_context_tokens > limit:
        raise StartupError(f"model.max_context_tokens: {config.max_context_tokens} is more than the model's {limit}")
    return config.max_context_tokens or limit


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
