"""There are never two processes of one member. Ray is scripted: contact with a process that lives cannot be lost on demand."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pbkv_cluster.cluster.frame import supervisor as module
from pbkv_cluster.cluster.frame.actors import MemberSpec
from pbkv_cluster.cluster.frame.standby import Standby
from pbkv_cluster.cluster.frame.supervisor import RunningMember, Supervisor
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.core.config import Config
from tests.polling import wait_for

SOON_S = 20.0
CONTEXT = MemberContext(Config(), "", "", "")
LOST = ray.exceptions.ActorUnavailableError("lost contact", None)
DIED = ray.exceptions.ActorDiedError()


class Actor:
    """An actor whose calls end when the test says so."""

    def __init__(self) -> None:
        self.calls: dict[str, Future[Any]] = {}
        self.killed = False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self._call, method))

    def _call(self, method: str, *_: Any) -> Future[Any]:
        self.calls[method] = Future()
        return self.calls[method]


class NoStandby(Standby):
    """Is never there. Counts how often it is asked for its calls, which is once in each round of the supervisor."""

    def __init__(self) -> None:
        super().__init__([], None, "")  # type: ignore[arg-type]
        self.polls = 0

    @property
    def calls(self) -> list[Any]:
        self.polls += 1
        return []

    def launch_if_due(self) -> None:
        pass


class Script:
    """Supervises one member on scripted actors, by a clock that stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actors = [Actor()]  # in the order of their launch
        self.standby = NoStandby()
        self.now = 0.0
        scripted = SimpleNamespace(wait=self._wait, get=Future.result, kill=self._kill, exceptions=ray.exceptions)
        monkeypatch.setattr(module, "ray", scripted)
        monkeypatch.setattr(module, "launch", self._launch)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        spec: Any = MemberSpec("gateway", None, CONTEXT, "node")  # type: ignore[arg-type]  # no member is made
        self.supervisor = Supervisor([RunningMember(spec, self.actors[0], "127.0.0.1:1", 1)], self.standby, lambda _: None)

    def _wait(self, calls: Sequence[Future[Any]], timeout: float) -> tuple[list[Future[Any]], None]:
        return list(wait(calls, 0.01, FIRST_COMPLETED).done), None

    def _kill(self, actor: Actor, no_restart: bool) -> None:
        actor.killed = no_restart

    def _launch(self, *_: Any) -> Actor:
        self.actors.append(Actor())
        return self.actors[-1]

    def end(self, call: str, outcome: Exception | tuple[str, str, int]) -> Actor:
        """Ends a call of the latest actor, once it is pending, and returns that actor."""
        actor = self.actors[-1]
        wait_for(lambda: call in actor.calls, SOON_S)
        if isinstance(outcome, Exception):
            actor.calls[call].set_exception(outcome)
        else:
            actor.calls[call].set_result(outcome)
        return actor

    def poll(self) -> None:
        """Waits until the supervisor has handled all that has ended and is due."""
        seen = self.standby.polls
        wait_for(lambda: self.standby.polls >= seen + 2, SOON_S)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    made = Script(monkeypatch)
    made.supervisor.start()
    yield made
    made.supervisor.stop()
    made.supervisor.check_alive()


def expect_next_only_after_end(script: Script, actor: Actor) -> None:
    """The actor is killed, and another is launched a pause after its end, not before."""
    launched = len(script.actors)
    wait_for(lambda: actor.killed, SOON_S)
    script.now += 100.0
    script.poll()
    assert len(script.actors) == launched, "its process may still be there"
    script.end("end", LOST)
    del actor.calls["end"]
    script.poll()
    script.now += 100.0
    script.end("end", DIED)
    script.poll()
    assert len(script.actors) == launched, "Ray tells the end of what was killed a little early"
    script.now += 100.0
    wait_for(lambda: len(script.actors) == launched + 1, SOON_S)
    script.end("serve", ("127.0.0.1:2", "", 2))
    assert script.supervisor.pids(SOON_S, lambda: None) == {"gateway": 2}


def test_a_member_that_is_not_reached_is_replaced_after_its_end(script: Script) -> None:
    expect_next_only_after_end(script, script.end("failure", LOST))


@pytest.mark.parametrize("outcome", [LOST, ("", "not ready in time", 1)], ids=["contact lost", "not ready"])
def test_a_member_that_could_not_start_is_replaced_after_its_end(script: Script, outcome: Any) -> None:
    script.end("failure", DIED)
    wait_for(lambda: len(script.actors) == 2, SOON_S)
    expect_next_only_after_end(script, script.end("serve", outcome))


def test_a_member_that_failed_is_replaced_at_its_end_without_a_pause(script: Script) -> None:
    actor = script.actors[0]
    wait_for(lambda: "failure" in actor.calls, SOON_S)
    actor.calls["failure"].set_result("it broke")
    script.poll()
    assert len(script.actors) == 1
    script.end("end", DIED)
    wait_for(lambda: len(script.actors) == 2, SOON_S)
    assert not actor.killed


def test_a_member_that_is_added_starts_until_it_serves(script: Script) -> None:
    spec: Any = MemberSpec("worker-7", None, CONTEXT, "node")  # type: ignore[arg-type]
    script.supervisor.add([spec])
    assert {entry.name: entry.up for entry in script.supervisor.entries()} == {"gateway": True, "worker-7": False}
    first = script.end("serve", ("", "no memory", 2))
    wait_for(lambda: first.killed, SOON_S)
    script.end("end", DIED)
    script.poll()
    script.now += 100.0
    wait_for(lambda: len(script.actors) == 3, SOON_S)
    script.end("serve", ("127.0.0.1:3", "", 3))
    assert script.supervisor.pids(SOON_S, lambda: None) == {"gateway": 1, "worker-7": 3}
    assert [entry.restarts for entry in script.supervisor.entries()] == [0, 0]


def test_a_member_that_is_removed_is_not_started_again(script: Script) -> None:
    spec: Any = MemberSpec("worker-7", None, CONTEXT, "node")  # type: ignore[arg-type]
    script.supervisor.add([spec])
    script.end("serve", ("127.0.0.1:3", "", 3))
    script.supervisor.pids(SOON_S, lambda: None)
    (removed,) = script.supervisor.remove(["worker-7", "nobody"])
    assert (removed.spec.name, removed.pid) == ("worker-7", 3)
    script.end("failure", DIED)
    script.poll()
    script.now += 100.0
    script.poll()
    assert len(script.actors) == 2
    assert script.supervisor.addresses() == {"gateway": "127.0.0.1:1"}
    assert script.supervisor.down_s("worker-7") == 0.0
