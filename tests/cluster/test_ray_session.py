"""What Ray is told about the cluster that it carries."""

import os

import pytest

from pbkv_cluster.cluster.frame import ray_session
from pbkv_cluster.core.config import ClusterConfig, Config

WAIT = "RAY_gcs_server_port_wait_time_s"
OURS = ("RAY_memory_monitor_refresh_ms", "RAY_worker_niceness", WAIT)


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
