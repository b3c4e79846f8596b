"""What `pbkv serve` says and does when a process that it rests on is killed, and when it is interrupted again and again."""

import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import END_S, expect_none_left, marked
from tests.cluster.test_cluster_lifecycle import await_gateway, serve


def named(mark: str, name: str) -> psutil.Process:
    """The one process of the test that is called `name`."""
    (found,) = [process for process in marked(mark) if process.name() == name]
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the clusters of one test have their temporary folders, but not Ray, whose sockets need short paths."""
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Reads standard error up to a line that contains `words`. Returns that line."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"it ended without saying {words!r}")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_without_ray_it_ends_and_says_why(small_model: Path, mark: str, temporary: Path, victim: str) -> None:
    process = serve(small_model)
    await_gateway(process)
    named(mark, victim).kill()
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 1
    (why,) = [line for line in errors.splitlines() if line.startswith("pbkv: ")]
    assert f"Ray's {victim} " in why
    assert "was killed by SIGKILL" in why
    assert "Traceback" not in errors
    expect_none_left(mark)
    assert not list(temporary.glob("pbkv-state-*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_leaves_nothing(small_model: Path, mark: str, temporary: Path, how: signal.Signals) -> None:
    process = serve(small_model)
    await_gateway(process)
    assert list(temporary.glob("pbkv-state-*"))
    process.send_signal(how)
    read_until(process, "stopping")
    for _ in range(3):
        process.send_signal(how)
    process.communicate(timeout=END_S)
    expect_none_left(mark)
    assert not list(temporary.glob("pbkv-state-*"))


@pytest.mark.slow
def test_a_machine_whose_memory_others_fill_costs_no_member(
    small_model: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's memory monitor would kill every member: the machine always uses more than this threshold."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    process = serve(small_model)
    await_gateway(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 0
    assert "ended:" not in errors
    expect_none_left(mark)


@pytest.mark.slow
def test_a_killed_member_is_told_with_its_cause(small_model: Path, mark: str) -> None:
    process = serve(small_model)
    endpoint = await_gateway(process)
    gateway = next(found for found in marked(mark) if listens(found, int(endpoint.rpartition(":")[2])))
    gateway.kill()
    assert f"gateway (process {gateway.pid}) ended: its process was killed by a signal" in read_until(process, "ended")
    assert read_until(process, "is back").startswith(f"gateway is back at {endpoint} after ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=END_S)
    assert process.returncode == 0
    expect_none_left(mark)


def listens(process: psutil.Process, port: int) -> bool:
    return any(each.laddr.port == port and each.status == psutil.CONN_LISTEN for each in process.net_connections())
