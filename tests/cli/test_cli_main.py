"""The command as a whole: help without heavy imports, the version, exit codes."""

import subprocess
import sys

import pytest

from pbkv_cluster import __version__
from pbkv_cluster.cli import main as cli
from pbkv_cluster.core.errors import ConfigError, FailedPrecondition, InvalidArgument, PbkvError, StartupError, Unavailable
from pbkv_cluster.simulator.traces.step_traces import TraceError
from tests.cli.conftest import DEADLINE_S

HEAVY = ("ray", "torch", "transformers", "grpc", "redis", "numpy", "fastapi")
OF_COMMANDS = ("pydantic", "yaml", "asyncio")  # what a command may import to show its own help


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["serve", "--help"], ["demo", "--help"], ["config", "show", "--help"]]
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    heavy = (*HEAVY, *OF_COMMANDS) if args[0].startswith("--") else HEAVY
    code = f"""
import sys
from pbkv_cluster.cli.main import main
try:
    main({args!r})
except SystemExit as done:
    assert not done.code, done.code
print("LOADED", *sorted({{name.partition(".")[0] for name in sys.modules}} & set({heavy!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


@pytest.mark.parametrize("module", ["pbkv_cluster", "pbkv_cluster.cli"])
def test_runs_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stdout == f"pbkv {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "submit", "status", "config", "replay", "demo"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x: wrong"), 2),
        (InvalidArgument("x", "wrong"), 2),
        (TraceError("x: wrong"), 2),
        (StartupError("x: wrong"), 1),
        (Unavailable("x: wrong"), 1),
        (FailedPrecondition("x: wrong"), 1),
        (PbkvError("x: wrong"), 1),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: PbkvError, code: int
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert _exit_code(["status"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "pbkv: x: wrong\n")


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["status"])


@pytest.mark.parametrize(
    "args", [["no-such-command"], ["status", "--no-such-option"], ["replay"], ["demo", "--workflows", "0"]]
)
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert _exit_code(args) == 2
    assert "Traceback" not in capsys.readouterr().err


def _exit_code(args: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(args)
    return exit_info.value.code
