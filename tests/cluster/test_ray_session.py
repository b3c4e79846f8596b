"""What Ray is told about the cluster that it carries, and how one is joined."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pbkv_cluster.cluster.frame import ray_session
from pbkv_cluster.core.config import ClusterConfig, Config
from tests.cluster.conftest import expect_none_left
from tests.cluster.ray_head import ray_head

WAIT = "RAY_gcs_server_port_wait_time_s"
OURS = ("RAY_memory_monitor_refresh_ms", "RAY_worker_niceness", WAIT)
JOINING = """
import sys

import ray  # by whoever uses Ray for other things, too

from pbkv_cluster.cluster.frame import ray_session
from pbkv_cluster.core.config import ClusterConfig, Config

config = Config(cluster=ClusterConfig(address=sys.argv[1]))
ray_session.set_environment(config)
ray_session.start(config)
ray_session.check_alive()
ray_session.stop()
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})


@pytest.mark.usefixtures("environment")
def test_a_ray_that_is_started_here_may_take_as_long_as_a_start() -> None:
    ray_session.set_environment(Config(cluster=ClusterConfig(start_timeout_s=90.5)))
    assert [os.environ[name] for name in OURS] == ["0", "0", "91"]


@pytest.mark.usefixtures("environment")
def test_what_the_user_has_set_stays() -> None:
    os.environ[WAIT] = "7"
    ray_session.set_environment(Config())
    assert os.environ[WAIT] == "7"


@pytest.mark.usefixtures("environment")
def test_a_ray_that_is_joined_keeps_its_own_settings() -> None:
    ray_session.set_environment(Config(cluster=ClusterConfig(address="10.0.0.1:6379")))
    assert not set(OURS) & set(os.environ)


def test_a_ray_that_wants_the_users_token_is_joined_although_ray_was_imported_before(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("7" * 64)
    with ray_head(26479, {}) as address:
        joined = subprocess.run([sys.executable, "-c", JOINING, address], capture_output=True, text=True, timeout=120)
    assert joined.returncode == 0, joined.stderr
    expect_none_left(mark)
