"""Which models load, their names and revisions, and the errors of those that do not load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pbkv_cluster.core.config import EngineConfig, ModelConfig
from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.gpu_worker.kv.storage import KvShape
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner, pick_device
from tests.gpu_worker.conftest import SMALL

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def load(path: Path | str, **fields: Any) -> LoadedModel:
    return load_model(ModelConfig(path=str(path), **fields), CPU)


@pytest.fixture
def copied(model_dirs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the llama checkpoint that a test may damage."""
    return Path(shutil.copytree(model_dirs["llama"], tmp_path / "copy"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_every_family_loads_from_a_directory(model_dirs: dict[str, Path], family: str) -> None:
    model = load(model_dirs[family])
    # qwen2 has no head_dim of its own to set.
    assert model.shape == KvShape(layers=2, kv_heads=2, head_dim=16, dtype=torch.float32)
    assert model.vocabulary == 4096
    assert model.max_context == SMALL["max_position_embeddings"]
    assert model.eos == {0}
    assert not model.module.training
    assert load(model_dirs[family], max_context_tokens=100).max_context == 100


def test_a_copy_has_the_same_revision_and_any_other_weight_another(model_dirs: dict[str, Path], copied: Path) -> None:
    original = load(model_dirs["llama"])
    copy = load(copied)
    assert copy.revision == original.revision
    weights = load_file(copied / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert load(copied).revision != original.revision


def test_another_configuration_of_the_same_weights_is_another_revision(copied: Path) -> None:
    before = load(copied).revision
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert load(copied).revision != before


def test_the_namespace_tells_types_and_models_apart(model_dirs: dict[str, Path]) -> None:
    single, double = (load(model_dirs["llama"], dtype=dtype) for dtype in ("float32", "float64"))
    assert (single.namespace().dtype, double.namespace().dtype) == ("float32", "float64")
    assert single.namespace() == load(model_dirs["llama"], dtype="auto").namespace()
    namespaces = [single, double, load(model_dirs["qwen2"]), load(model_dirs["mistral"])]
    assert len({model.namespace().digest() for model in namespaces}) == 4


@pytest.mark.parametrize("path", ["", "/nowhere/at/all", "./nowhere", "nowhere", "no/such/thing", "~/nowhere"])
def test_a_path_that_is_neither_a_directory_nor_a_hub_id_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartupError, match=r"^model\.path: "):
        load(path)


def test_a_hub_id_that_cannot_be_downloaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the variable is read when the package is imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StartupError, match=r"^model\.path: 'nobody/no-such-model' is no directory, and cannot be had"):
        load("nobody/no-such-model")


def truncate_weights(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def remove_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def drop_one_weight(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def change_shape(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))


def break_configuration(path: Path) -> None:
    (path / "config.json").write_text("{")


def name_unknown_kind(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "abacus"}))


@pytest.mark.parametrize(
    "spoil", [truncate_weights, remove_weights, drop_one_weight, change_shape, break_configuration, name_unknown_kind]
)
def test_a_damaged_checkpoint_is_refused(copied: Path, spoil: Callable[[Path], None]) -> None:
    spoil(copied)
    with pytest.raises(StartupError, match=r"^model\.path: .*copy"):
        load(copied)


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**TINY))


def bert_with_a_head() -> Any:
    from transformers import BertConfig, BertLMHeadModel

    return BertLMHeadModel(BertConfig(**TINY))


def encoder_decoder() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))


def half_an_encoder_decoder() -> Any:
    from transformers import BartConfig, BartForCausalLM

    sizes: dict[str, Any] = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    return BartForCausalLM(BartConfig(vocab_size=64, d_model=32, is_decoder=True, bos_token_id=0, eos_token_id=1, **sizes))


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))


def deepseek() -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    ranks: dict[str, Any] = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    experts: dict[str, Any] = {
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }
    return DeepseekV3ForCausalLM(DeepseekV3Config(**TINY, num_key_value_heads=4, **ranks, **experts))


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**TINY, num_key_value_heads=2, head_dim=8))


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(
        GptOssConfig(**TINY, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
    )


def llama4() -> Any:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    sizes: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    return Llama4ForCausalLM(Llama4TextConfig(**TINY, **sizes, attention_chunk_size=16))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (bert, "lacks weights of a causal language model: cls"),
        (bert_with_a_head, "not causal"),
        (encoder_decoder, "no causal language model"),
        (half_an_encoder_decoder, "where in a sequence"),
        (mamba, "it needs attention with equal KV in each of the 2 layers, found it in 0"),
        (deepseek, r"its keys are \(1, 4, 12\), its values \(1, 4, 8\)"),
        (gemma2, "'softcap'"),
        (gpt_oss, "'s_aux'"),
        (llama4, "chunked"),
    ],
)
def test_a_model_that_the_engine_would_run_wrongly_is_refused(make: Callable[[], Any], why: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(StartupError, match=rf"^model\.path: .*{why}"):
        load(tmp_path)


def test_a_context_beyond_the_models_is_refused(model_dirs: dict[str, Path]) -> None:
    assert load(model_dirs["llama"], max_context_tokens=1024).max_context == 1024
    with pytest.raises(StartupError, match=r"^model\.max_context_tokens: 1025 is more than the model's 1024"):
        load(model_dirs["llama"], max_context_tokens=1025)


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "cuda:99", ""])
def test_a_missing_device_is_refused(name: str) -> None:
    with pytest.raises(StartupError, match=r"^engine\.device: "):
        pick_device(name)


def test_auto_takes_the_best_device() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == CPU


def test_a_pool_that_is_too_small_is_refused(models: dict[str, LoadedModel]) -> None:
    with pytest.raises(StartupError, match=r"^engine\.gpu_blocks: 7 blocks are too few, at least 8"):
        TorchRunner(models["llama"], EngineConfig(gpu_blocks=7), CPU)
    assert TorchRunner(models["llama"], EngineConfig(gpu_blocks=8), CPU).gpu_blocks == 8


def test_the_host_tier_is_twice_the_pool_by_default(models: dict[str, LoadedModel]) -> None:
    for host_blocks, expected in ((-1, 16), (0, 0), (3, 3)):
        runner = TorchRunner(models["llama"], EngineConfig(gpu_blocks=8, host_blocks=host_blocks), CPU)
        runner.allocate()
        assert runner.host_blocks == expected
        assert len(runner.storage.host) == expected
        assert len(runner.storage.gpu) == 8


def test_an_unknown_attention_is_refused(models: dict[str, LoadedModel]) -> None:
    with pytest.raises(InvalidArgument, match=r"^engine\.attention: 'flashier' is unknown"):
        TorchRunner(models["llama"], EngineConfig(gpu_blocks=8, attention="flashier"), CPU)
