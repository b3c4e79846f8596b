"""Starting and stopping: clear errors if a cluster cannot start, and no process left behind however it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import END_S, expect_none_left, marked
from tests.polling import wait_for

SERVE = [sys.executable, "-m", "pbkv_cluster.cli", "serve", "--workers", "1"]
START_S = 120


def serve(small_model: Path, *flags: str) -> subprocess.Popen[str]:
    command = [
        *SERVE,
        "--model",
        str(small_model),
        "--gpu-blocks",
        "100",
        "--port",
        "0",
        "--set",
        "gateway.http_port=0",
        *flags,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As at a terminal: a shell without job control starts background processes with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def await_gateway(process: subprocess.Popen[str]) -> str:
    """Reads the command's output up to the gateway's address."""
    assert process.stdout is not None
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if line.startswith("gateway"):
                return line.split()[1]
    finally:
        watchdog.cancel()
    raise AssertionError(f"it never came up: {process.communicate()[1]}")


def expect_only_our_lines(errors: str) -> None:
    """Nothing but stages of the start and sizes of tiers may be on standard error, nothing of Ray above all."""
    first, *stages, last = errors.splitlines()
    assert first == "starting the cluster; Ctrl-C stops it"
    assert [line for line in stages if not re.fullmatch(r" *\d+\.\d s  .* \(\d+\.\d s\)|worker-\d+: GPU tier .*", line)] == []
    assert last == "stopping"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(small_model: Path, mark: str, how: signal.Signals) -> None:
    process = serve(small_model)
    await_gateway(process)
    assert len(marked(mark)) > 5
    process.send_signal(how)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 0
    expect_only_our_lines(errors)
    expect_none_left(mark)


def test_ctrl_c_at_a_terminal_stops_everything(small_model: Path, mark: str) -> None:
    """A terminal sends the signal to the whole process group."""
    process = serve(small_model)
    await_gateway(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 0
    expect_only_our_lines(errors)
    expect_none_left(mark)


@pytest.mark.slow
def test_ctrl_c_during_the_start_stops_everything(small_model: Path, mark: str) -> None:
    process = serve(small_model)
    wait_for(lambda: len(marked(mark)) > 3, START_S)
    process.send_signal(signal.SIGINT)
    process.wait(END_S)
    expect_none_left(mark)


def actors(mark: str) -> int:
    """The number of processes that run an actor of ours."""
    count = 0
    for process in marked(mark):
        try:
            count += any("MemberActor" in word for word in process.cmdline())
        except psutil.NoSuchProcess:  # it has ended since
            continue
    return count


@pytest.mark.slow
def test_killing_the_command_leaves_nothing(small_model: Path, mark: str) -> None:
    process = serve(small_model)
    await_gateway(process)
    wait_for(lambda: actors(mark) == 5, START_S)  # gateway, predictor, host store, worker and the standby
    process.kill()
    process.wait(END_S)
    expect_none_left(mark)


def expect_failure(small_model: Path, flags: tuple[str, ...], cause: str) -> None:
    process = serve(small_model, *flags)
    _, errors = process.communicate(timeout=START_S)
    assert process.returncode != 0
    assert cause in errors, errors
    assert "Traceback" not in errors


def test_a_missing_model_is_named_and_nothing_is_left(small_model: Path, mark: str, tmp_path: Path) -> None:
    expect_failure(small_model, ("--model", str(tmp_path / "nowhere")), "model.path")
    expect_none_left(mark)


def test_a_taken_port_is_named_and_nothing_is_left(small_model: Path, mark: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        expect_failure(small_model, ("--port", str(taken.getsockname()[1])), "port")
    expect_none_left(mark)


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--policy", "nonsense"), "cache.policy"),
        (("--set", "engine.gpu_blocks=-1"), "engine.gpu_blocks"),
        (("--set", "engine.nonsense=1"), "engine.nonsense"),
        (("--set", "redis.url=redis://127.0.0.1:1/0"), "redis.url"),
    ],
)
def test_a_wrong_setting_is_named(small_model: Path, flags: tuple[str, ...], cause: str) -> None:
    expect_failure(small_model, flags, cause)
