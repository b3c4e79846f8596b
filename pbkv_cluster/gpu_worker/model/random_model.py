"""A small model with random weights, saved like a real one: for tests, and for trying the service without a real model."""

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument

_VOCABULARY = 4096
_END = "<|end|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_VERSION = 1  # of the models that `cached` builds
SIZES: dict[str, dict[str, Any]] = {
    "5m": {},
    "24m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 7, "num_attention_heads": 8},
}  # fields of the configuration that differ from `build`'s, by number of parameters


def cached(size: str = "5m") -> Path:
    """The directory of a model of one of `SIZES`, which is built on first use and kept in the user's cache.

    That of 5 M parameters is the one that is used if none is configured.
    """
    return cached_model(f"random-llama-{size}-{_VERSION}", partial(build, **SIZES[size]))


def cached_model(name: str, make: Callable[[Path], None]) -> Path:
    """A directory of this name in the user's cache; if there is none, `make` fills a new one first.

    A directory that is there is complete: it gets its name last. Of several processes that make one, the first wins.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "pbkv_cluster" / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        make(building)
        building.rename(path)
    except OSError:  # another process was faster
        if not path.exists():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


def build(path: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> None:
    """Writes a model and its tokenizer to `path` as a checkpoint.

    Args:
        path: an existing directory.
        family: llama, qwen2, qwen3 or mistral.
        seed: of the weights.
        overrides: fields of the model's configuration.

    Raises:
        InvalidArgument: the family is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig}
    if family not in kinds:
        raise InvalidArgument("family", f"{family!r} is none of {', '.join(kinds)}")
    tokenizer = _tokenizer()
    fields = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,  # wide enough that greedy output does not repeat one token for ever
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        **overrides,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(kinds[family](**fields), dtype=torch.float32)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _tokenizer() -> Any:
    """A byte-level BPE, trained on text that every Python installation has: source code of its standard library."""
    import argparse
    import asyncio.base_events
    import typing

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END, *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([inspect.getsource(module) for module in (argparse, asyncio.base_events, typing)], trainer)
    wrapper: Any = PreTrainedTokenizerFast
    fast = wrapper(tokenizer_object=tokenizer, eos_token=_END, additional_special_tokens=list(_ROLES))
    fast.chat_template = _CHAT_TEMPLATE
    return fast
