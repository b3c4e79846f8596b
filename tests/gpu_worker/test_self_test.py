"""The self-test of a loaded model finds every way in which the engine could run it wrongly; refusals speak of the model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.gpu_worker.attention import ATTENTION, Span
from pbkv_cluster.gpu_worker.attention.sdpa import SdpaBatch
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model

CPU = torch.device("cpu")
PYTHON = re.compile(r"NoneType|object|argument|attribute|subscript|__|operand|division|\bint\b|\bstr\b|Error\b")


def load(path: Path, attention: str = "auto", **fields: Any) -> LoadedModel:
    return load_model(ModelConfig(path=str(path), **fields), CPU, attention)


@pytest.fixture
def copied(model_dirs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the llama checkpoint that a test may damage."""
    return Path(shutil.copytree(model_dirs["llama"], tmp_path / "copy"))


class Forgetful(SdpaBatch):
    """Ignores windows."""

    def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float | None, window: int | None) -> torch.Tensor:
        return super().attend(layer, query, key, value, scale, None)


class Shifted(SdpaBatch):
    """Takes chunks after the first for a sequence's beginning."""

    def __init__(self, storage: Any, spans: Any) -> None:
        super().__init__(storage, [Span(0, span.tokens, span.table) if span.tokens > 1 else span for span in spans])


class Mixed(SdpaBatch):
    """Takes a batch of several sequences for one."""

    def __init__(self, storage: Any, spans: Any) -> None:
        if len(spans) > 1:
            tokens = sum(span.tokens for span in spans)
            slots = [slot for span in spans for slot in span.table]
            spans = [Span(0, tokens, slots)]
        super().__init__(storage, spans)


class Unscaled(SdpaBatch):
    """Scales scores by a little too much."""

    def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float | None, window: int | None) -> torch.Tensor:
        return super().attend(layer, query, key, value, 1.001 * (scale or query.shape[-1] ** -0.5), window)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("back_end", "family", "what"),
    [
        (Forgetful, "mistral", r"a prompt of 96 tokens differ"),
        (Shifted, "llama", r"a prompt of 96 tokens in chunks differ"),
        (Mixed, "llama", r"prompts in one batch differ"),
        (Unscaled, "qwen2", r"a prompt of 12 tokens differ"),
    ],
)
def test_a_back_end_that_computes_otherwise_is_found(
    back_end: type[SdpaBatch], family: str, what: str, dtype: Any, model_dirs: dict[str, Path]
) -> None:
    name = f"{__name__}:{back_end.__name__}"
    assert ATTENTION.get(name) is not None
    with pytest.raises(StartupError, match=rf"^model\.path: .*in the self-test, .*{what}.*self_test: off"):
        load(model_dirs[family], name, dtype=dtype)
    assert load(model_dirs[family], name, dtype=dtype, self_test=False).eos == {0}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_model_that_runs_rightly_passes_in_every_data_type(family: str, dtype: Any, model_dirs: dict[str, Path]) -> None:
    assert load(model_dirs[family], dtype=dtype).shape.dtype == getattr(torch, dtype)


def test_an_unknown_attention_is_refused_when_the_model_is_loaded(model_dirs: dict[str, Path]) -> None:
    with pytest.raises(InvalidArgument, match=r"^engine\.attention: 'flashier' is unknown"):
        load(model_dirs["llama"], "flashier")


def configure(path: Path, **fields: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


def spoil_weight(path: Path, value: float) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda path: configure(path, num_hidden_layers=1),
            r"holds \d+ weights that the model in its config",
        ),
        (lambda path: spoil_weight(path, float("nan")), "model.layers.1.mlp.up_proj.weight holds values that are not finite"),
        (lambda path: spoil_weight(path, float("inf")), "model.layers.1.mlp.up_proj.weight holds values that are not finite"),
        (lambda path: configure(path, max_position_embeddings=0), "has room for no token: max_position_embeddings is 0"),
        (lambda path: configure(path, max_position_embeddings=-5), "max_position_embeddings is -5"),
        (lambda path: configure(path, intermediate_size=100), "weights do not have the shapes that its config.json states"),
        (lambda path: configure(path, num_attention_heads=0), ""),
        (lambda path: configure(path, num_key_value_heads=3), ""),
        (lambda path: configure(path, hidden_act="nosuch"), ""),
        (lambda path: configure(path, rope_parameters={"rope_type": "nosuch"}), ""),
        (lambda path: configure(path, vocab_size=None), ""),
        (lambda path: configure(path, hidden_size="many"), ""),
    ],
)
def test_a_checkpoint_that_makes_no_sense_is_refused_in_words_about_it(
    spoil: Callable[[Path], None], why: str, copied: Path
) -> None:
    spoil(copied)
    with pytest.raises(StartupError, match=rf"(?s)^model\.path: .*{why}") as error:
        load(copied)
    assert not PYTHON.search(str(error.value))


def test_outputs_end_where_generation_tokenizer_or_template_say(copied: Path) -> None:
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer
    tokenizer = auto.from_pretrained(copied)
    (turn,) = tokenizer.convert_tokens_to_ids(["<|tool|>"])
    generation = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [7, 9]}))
    assert load(copied).eos == {0, 7, 9}
    tokenizer.eos_token = "<|user|>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|tool|>")
    tokenizer.save_pretrained(copied)
    assert load(copied).eos == {turn, tokenizer.eos_token_id, 7, 9}
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    tokenizer.save_pretrained(copied)
    assert load(copied).eos == {tokenizer.eos_token_id, 7, 9}
