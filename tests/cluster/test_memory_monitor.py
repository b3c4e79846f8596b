"""What a joined Ray's memory monitor kills is told as such. The Ray of these tests kills every process that it runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import END_S, expect_none_left
from tests.cluster.ray_head import ray_head
from tests.cluster.test_cluster_lifecycle import START_S, serve

KILLING = {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "100"}
NAMED = "killed by Ray's memory monitor: node memory full ("
SUPERVISED = """
import threading

import ray

from pbkv_cluster.cluster.frame.actors import MemberSpec, launch
from pbkv_cluster.cluster.frame.standby import Standby
from pbkv_cluster.cluster.frame.supervisor import RunningMember, Supervisor
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.core.config import Config

ray.init("local", _node_ip_address="127.0.0.2", include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
node = ray.get_runtime_context().get_node_id()
context = MemberContext(Config(), "", "127.0.0.2", node)
member = RunningMember(MemberSpec("gateway", None, context, node), launch("gateway", node), "127.0.0.1:1", 1)
standby = Standby([], None, node)
supervisor = Supervisor([member], standby, lambda entries: print(entries[0].last_failure, flush=True))
supervisor.start()
threading.Event().wait()
"""


def test_a_member_that_it_kills_is_told_with_the_cause(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KILLING.items():
        monkeypatch.setenv(name, value)
    process = subprocess.Popen([sys.executable, "-c", SUPERVISED], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        told = next(line for line in process.stdout if line.strip())
    finally:
        process.terminate()  # killed, it would leave agents of Ray that try for a minute to tell that their node has died
        process.communicate(timeout=END_S)
    assert told.startswith(NAMED)
    assert "start the nodes of Ray with RAY_memory_monitor_refresh_ms=0" in told
    expect_none_left(mark)


@pytest.mark.slow
def test_serve_on_a_joined_ray_that_kills_its_members_says_so(small_model: Path, mark: str) -> None:
    with ray_head(26379, KILLING) as address:
        process = serve(small_model, "--address", address)
        _, errors = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert "died while it started: " + NAMED in errors
    assert "Traceback" not in errors
    expect_none_left(mark)
