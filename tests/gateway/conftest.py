"""Fixtures that tests of the gateway share."""

from pathlib import Path

import pytest

from pbkv_cluster.gpu_worker.model.random_model import build
from tests.gateway.real_workers import SIZES


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model for `real_workers`."""
    path = tmp_path_factory.mktemp("model")
    build(path, "llama", **SIZES)
    return path
