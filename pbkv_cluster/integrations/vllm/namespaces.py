"""What decides the bytes of a block besides the request: weights, configuration, dtype, layout and rank."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
import xxhash

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.integrations.vllm.options import Refused

WHOLE_BYTES = 8 << 30  # of all weights; of larger ones, samples are read
_SAMPLE_BYTES = 64 << 10
_SAMPLE_EVERY = 16 << 20
_NOT_THE_MODEL = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})  # of its configuration
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")


def namespace(config: Any, version: str, layout: str, rank: str, revision: str) -> Namespace:
    """The namespace of one worker's blocks.

    Args:
        config: `VllmConfig`.
        version: of vLLM; how a layout's bytes are to be understood is its own affair.
        layout: shapes and strides of the KV cache, and whose kernels read it.
        rank: of the worker.
        revision: as the user has given it; empty: found out.

    Raises:
        Refused: the weights cannot be told from others.
    """
    model = config.model_config
    facts = {
        "config": {name: value for name, value in model.hf_config.to_dict().items() if name not in _NOT_THE_MODEL},
        "quantization": str(model.quantization),
        "load_format": str(config.load_config.load_format),
        "seed": model.seed if str(config.load_config.load_format) == "dummy" else None,  # of random weights
        "weights": revision or weights_revision(str(model.model), getattr(model.hf_config, "_commit_hash", None)),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return Namespace(
        model=", ".join(model.hf_config.architectures or ()),
        revision=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        dtype=f"{model.dtype}/{config.cache_config.cache_dtype}",
        layout=f"vllm {'.'.join(version.split('.')[:2])}: {layout}",
        block_tokens=config.cache_config.block_size,
        rank=rank,
    )


def weights_revision(model: str, commit: str | None) -> str:
    """What tells the weights of a model from all others.

    Args:
        model: folder of a checkpoint, or an id on the hub.
        commit: of the hub's repository; None: unknown.

    Raises:
        Refused: neither is known, or the folder has no weights.
    """
    folder = Path(model)
    if folder.is_dir():
        return fingerprint(folder)
    if commit:
        return f"{model}@{commit}"
    raise Refused(f"model_revision: cannot be found out for {model!r}; set it in kv_connector_extra_config")


def fingerprint(folder: Path) -> str:
    """Digest of a checkpoint's weights: all of them up to 8 GiB; of larger ones 64 KiB of every 16 MiB, and the ends.

    Raises:
        Refused: there are none, so that all such folders would be alike.
    """
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    if not files:
        raise Refused(
            f"model_revision: no weights found in {str(folder)!r} ({', '.join(_WEIGHTS)}); "
            "set it in kv_connector_extra_config to what tells these weights from others"
        )
    is_whole = sum(file.stat().st_size for file in files) <= WHOLE_BYTES
    digest = xxhash.xxh3_128()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            while part := stream.read(_SAMPLE_EVERY if is_whole else _SAMPLE_BYTES):
                digest.update(part)
                if not is_whole:
                    at = min(stream.tell() - len(part) + _SAMPLE_EVERY, max(size - _SAMPLE_BYTES, stream.tell()))
                    stream.seek(at)
    return digest.hexdigest()


def kernels(device: torch.device, backends: list[str]) -> str:
    """Who reads and writes the KV cache: blocks of kernels that arrange it otherwise must not be mixed."""
    if device.type == "cpu":
        return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {' '.join(sorted(backends))}"
    return f"{device.type} {' '.join(sorted(backends))}"
