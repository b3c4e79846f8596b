"""One cluster for the tests of this folder: real Ray, Redis, gRPC, predictor and two workers with a small model."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.integrations.otel.member import OtelMember
from tests.polling import wait_for

MARK = "PROCESSES_OF_TEST"
END_S = 60.0  # for all processes of a cluster to end


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint so small that a step takes milliseconds."""
    path = tmp_path_factory.mktemp("model")
    build(
        path,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=8192,
    )
    return path


@pytest.fixture(scope="session")
def cluster(small_model: Path) -> Iterator[LocalCluster]:
    """Uses float64, so that rounding cannot change the output of a step that moves to another worker."""
    flags = {
        "cluster.name": f"test-{uuid.uuid4().hex[:8]}",
        "cluster.workers": 2,
        "model.path": str(small_model),
        "model.dtype": "float64",
        "engine.gpu_blocks": 600,
        "engine.host_blocks": 600,
        "engine.allow_forced_output": True,
        "gateway.port": 0,
        "gateway.http_port": 0,
        "redis.lease_s": 3.0,
        "otel.port": 0,
        "otel.http_port": 0,
        "otel.reorder_s": 0.1,
    }
    with LocalCluster(load(flags=flags).config, {"otel": OtelMember}) as running:
        yield running


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the environment of every process that is started during the test."""
    word = uuid.uuid4().hex
    monkeypatch.setenv(MARK, word)
    return word


def marked(word: str) -> list[psutil.Process]:
    """The other processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == word and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def expect_none_left(word: str) -> None:
    """Waits for the marked processes to end."""
    wait_for(lambda: not marked(word), END_S, lambda: f"still running: {[p.cmdline()[:4] for p in marked(word)]}")
