"""Commands under test, with a recording gateway or a stand-in for the cluster that they would start."""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from pbkv_cluster.cli.main import main
from tests.cli.stand_in_cluster import StandInCluster, module
from tests.simulator.recording_gateway import RecordingGateway, serving_in_thread


class Outcome(NamedTuple):
    """What a command left."""

    code: int | str | None
    out: str
    err: str


Pbkv = Callable[..., Outcome]


@pytest.fixture
def pbkv(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pbkv:
    """Runs `pbkv` with some arguments; never lets a traceback through."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(*args: str) -> Outcome:
        with pytest.raises(SystemExit) as exit_info:
            main(args)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(exit_info.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def gateway() -> RecordingGateway:
    return RecordingGateway()


@pytest.fixture
def endpoint(gateway: RecordingGateway) -> Iterator[str]:
    """Where `gateway` answers."""
    with serving_in_thread(gateway) as address:
        yield address


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[StandInCluster]:
    """The clusters that commands start, in order."""
    stand_in, started = module()
    monkeypatch.setattr(StandInCluster, "failures", {})
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return started
