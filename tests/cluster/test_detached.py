"""`pbkv serve --detach` outlives its shell, is followed with `attach` and ended with `down`, which leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import END_S, expect_none_left, marked
from tests.polling import wait_for

PBKV = [sys.executable, "-m", "pbkv_cluster.cli"]
START_S = 240.0


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of this test's clusters alone; Ray's sockets need short paths."""
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PBKV_GATEWAY_HTTP_PORT", "0")  # other tests have clusters at the same time
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def pbkv(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PBKV, *arguments], capture_output=True, text=True, timeout=START_S)


def detach(model: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Starts a cluster from a shell with a session of its own, and ends what is left of that session."""
    command = [*PBKV, "serve", "--detach", "--workers", "1", "--model", str(model), "--gpu-blocks", "100", "--port", "0"]
    shell = subprocess.Popen(
        ["sh", "-c", '"$@"; exit $?', "sh", *command, "--set", f"cluster.name={name}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, err = shell.communicate(timeout=START_S)
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == shell.pid:
                process.send_signal(signal.SIGHUP)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return subprocess.CompletedProcess(command, shell.returncode, out, err)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_detached_cluster_outlives_its_shell_and_is_ended_by_name(small_model: Path, mark: str, folders: Path) -> None:
    name = f"detached-{uuid.uuid4().hex[:8]}"
    done = detach(small_model, name)
    assert done.returncode == 0, done.stderr
    assert f"pbkv attach {name}" in done.stdout
    assert f"pbkv down {name}" in done.stdout
    assert f"model      {small_model}" in done.stdout
    (listed,) = json.loads(pbkv("clusters", "--json", "-").stdout)
    assert f"gateway    {listed['gateway']}" in done.stdout
    assert listed["log_path"] == str(folders / "state" / "pbkv" / f"{name}.log")
    assert pbkv("status", "--check", "--endpoint", listed["gateway"]).returncode == 0

    again = detach(small_model, name)
    assert again.returncode == 1
    assert f"a cluster '{name}' runs here already (process {listed['pid']})" in again.stderr

    attached = subprocess.Popen([*PBKV, "attach", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert attached.stdout is not None
    while listed["gateway"] not in attached.stdout.readline():
        pass
    down = pbkv("down", name)
    assert (down.returncode, down.stderr) == (0, "")
    assert down.stdout.splitlines() == [f"stopping cluster {name} (process {listed['pid']})", "stopped"]
    assert marked(mark) == [], "`down` returns when nothing is left"
    out, err = attached.communicate(timeout=END_S)
    assert out.splitlines()[-1].endswith(" stopping")
    assert err == f"cluster {name} has ended\n"
    assert not list(folders.glob("pbkv-state-*"))
    assert pbkv("down", name).stdout.startswith("nothing to stop: ")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_down_ends_what_hangs(small_model: Path, mark: str) -> None:
    name = f"hanging-{uuid.uuid4().hex[:8]}"
    assert detach(small_model, name).returncode == 0
    (listed,) = json.loads(pbkv("clusters", "--json", "-").stdout)
    os.kill(listed["pid"], signal.SIGSTOP)
    down = pbkv("down", name, "--timeout", "1")
    assert down.returncode == 0
    assert "did not end in 1 s; they are killed" in down.stderr
    expect_none_left(mark)


def test_a_cluster_that_cannot_start_says_so_and_leaves_nothing(mark: str, folders: Path) -> None:
    done = detach(folders / "nowhere", "failing")
    assert done.returncode == 1
    assert "pbkv: model.path" in done.stdout
    assert done.stderr == f"pbkv: the cluster did not start; the log is {folders / 'state' / 'pbkv' / 'failing.log'}\n"
    wait_for(lambda: not marked(mark), END_S)
    assert pbkv("clusters", "--json", "-").stdout == "[]\n"
