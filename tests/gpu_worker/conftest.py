"""Small models with random weights, one of each family, and the speed at which engines believe to compute."""

from pathlib import Path

import pytest
import torch

from pbkv_cluster.core.config import ModelConfig
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.gpu_worker.model.loading import LoadedModel, load_model
from pbkv_cluster.gpu_worker.model.random_model import build

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directory of each family's checkpoint."""
    torch.set_num_threads(1)
    dirs = {}
    for family in ("llama", "qwen2", "qwen3", "mistral"):
        dirs[family] = tmp_path_factory.mktemp(family)
        extra = {"sliding_window": 48} if family == "mistral" else {}
        build(dirs[family], family, **SMALL, **extra)
    return dirs


@pytest.fixture(scope="session")
def llama(model_dirs: dict[str, Path]) -> Path:
    """The checkpoint that tests of workers serve."""
    return model_dirs["llama"]


@pytest.fixture(scope="session")
def models(model_dirs: dict[str, Path]) -> dict[str, LoadedModel]:
    """Each family's model in float64, where rounding cannot turn one greedy choice into another."""
    return {
        family: load_model(ModelConfig(path=str(path), dtype="float64"), torch.device("cpu"))
        for family, path in model_dirs.items()
    }


class Prefill:
    """How long the engines believe that a token takes to compute."""

    token_s = 100.0


@pytest.fixture
def prefill(monkeypatch: pytest.MonkeyPatch) -> Prefill:
    prefill = Prefill()
    monkeypatch.setattr(PrefillRate, "seconds", lambda self, tokens: tokens * prefill.token_s)
    return prefill
