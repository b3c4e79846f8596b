"""Commands under test, with a recording gateway or a stand-in for the cluster that they would start."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import pytest

from pbkv_cluster.cli.main import main
from tests.cli.stand_in_cluster import StandInCluster, module
from tests.simulator.recording_gateway import RecordingGateway, serving_in_thread

T = TypeVar("T")
DEADLINE_S = 60.0


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int | str | None
    out: str
    err: str


Pbkv = Callable[..., Outcome]


@pytest.fixture
def pbkv(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pbkv:
    """Runs `pbkv` with some arguments; fails if it prints a traceback."""
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
    """Address of `gateway`."""
    with serving_in_thread(gateway) as address:
        yield address


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[StandInCluster]:
    """The stand-ins for clusters that commands start, in order."""
    stand_in, started = module()
    monkeypatch.setattr(StandInCluster, "failures", {})
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return started


class LoopThread:
    """An event loop in a thread of its own, for servers that a blocking command talks to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.begin(coroutine).result(DEADLINE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()
