"""A cluster whose workers are vLLM's engines, on the CPU."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from pbkv_cluster.gpu_worker.model.random_model import build

ROOT = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("PBKV_VLLM_PYTHON", "")
MAX_CONTEXT = 4096
ARGS: dict[str, Any] = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 64 << 20}


def settings(model: Path, **more: Any) -> dict[str, Any]:
    """Flags of a cluster with vLLM."""
    return {
        "cluster.name": f"test-{uuid.uuid4().hex[:8]}",
        "cluster.workers": 2,
        "cluster.start_timeout_s": 400.0,
        "model.path": str(model),
        "model.max_context_tokens": MAX_CONTEXT,
        "engine.type": "vllm",
        "engine.device": "cpu",
        "vllm.python": PYTHON,
        "vllm.args": ARGS,
        "gateway.port": 0,
        "gateway.http_port": 0,
        "redis.lease_s": 3.0,
        **more,
    }


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint so small that a step takes milliseconds, with a tokenizer."""
    path = tmp_path_factory.mktemp("model")
    build(
        path,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8192,
        initializer_range=0.1,
    )
    return path


@pytest.fixture(scope="session", autouse=True)
def find_ours() -> Iterator[None]:
    """vLLM's environment has nothing of ours installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with what requests have told vLLM's KV connectors."""
    return tmp_path_factory.mktemp("connector") / "told.jsonl"


@pytest.fixture(scope="session")
def cluster(model: Path, told: Path) -> Iterator[LocalCluster]:
    """Two workers, with a connector that writes down what it is told."""
    connector = {
        "kv_connector": "RecordingConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "tests.integrations.vllm_worker.recording_connector",
        "kv_connector_extra_config": {"file": str(told)},
    }
    flags = settings(model, **{"vllm.args": {**ARGS, "kv_transfer_config": connector}})
    with LocalCluster(load(flags=flags).config) as running:
        yield running
