"""Restarts members that end, on a standby if there is one, and tells why they ended and when they are back."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import ray

from pbkv_cluster.cluster.frame.actors import MemberSpec, launch
from pbkv_cluster.cluster.frame.causes import NODE_LOST, in_words
from pbkv_cluster.cluster.frame.standby import Standby
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import MemberEntry

log = logging.getLogger(__name__)

_POLL_S = 0.5
_RETRY_S = 1.0
_START_S = 3600.0  # for a member to start again; whether that is too long, `down_s` tells


class _State(Enum):
    """What a member does, and which call to its actor is pending."""

    UP = auto()  # it serves; `failure`, which ends when it fails or its process ends
    ENDING = auto()  # it has failed, or was killed; `end`, which ends with the process: it is not started again before that
    STARTING = auto()  # it starts in another process; `serve`
    WAITING = auto()  # it could not be started, or Ray did not answer; no call


@dataclass(slots=True)
class RunningMember:
    """A member that has started, and the actor that runs it now."""

    spec: MemberSpec
    actor: Any
    address: str
    pid: int


@dataclass(slots=True)
class _Supervised:
    running: RunningMember
    entry: MemberEntry
    state: _State = _State.UP
    call: Any = None
    killed: bool = False  # by the supervisor, while ENDING
    down_since: float | None = None
    retry_at: float = 0.0
    retry: Callable[[], None] | None = None


class Supervisor:
    """Watches members from a thread, by calls that only end with their processes, and starts each again that has ended.

    Members can be added and removed from any thread.

    A member is started again when Ray has said that its process has ended, so there are never two of it. Of a process that was
    killed Ray says so some milliseconds before it has ended; then the start waits for a second (`_RETRY_S`).
    """

    def __init__(
        self, members: Sequence[RunningMember], standby: Standby, on_change: Callable[[Sequence[MemberEntry]], None]
    ) -> None:
        """Args:
        members: all of them serve. Their actors, addresses and process ids are kept up to date.
        standby: takes the place of members of its node.
        on_change: takes the entries of all members when one of them has changed; called on the thread.
        """
        self._members = {each.spec.name: _Supervised(each, MemberEntry(each.spec.name, True, 0, "")) for each in members}
        self._standby = standby
        self._on_change = on_change
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        for member in self._members.values():  # nobody else knows them yet
            member.call = member.running.actor.failure.remote()
        self._on_change(self.entries())
        self._thread.start()

    def stop(self) -> None:
        """Restarts nothing any more, and ends the standby. May be called again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def check_alive(self) -> None:
        """Raises:
        Unavailable: the supervisor itself has failed.
        """
        if self._error is not None:
            raise Unavailable(f"members are not restarted any more: {type(self._error).__name__}: {self._error}")

    def add(self, specs: Sequence[MemberSpec]) -> None:
        """Starts members, each until it serves."""
        with self._changed:
            for spec in specs:
                running = RunningMember(spec, launch(spec.name, spec.node_id, spec.gpus), address="", pid=0)
                entry = MemberEntry(spec.name, up=False, restarts=0, last_failure="")
                member = self._members[spec.name] = _Supervised(running, entry, down_since=time.monotonic())
                self._serve(member)
        self._on_change(self.entries())

    def remove(self, names: Collection[str]) -> list[RunningMember]:
        """Supervises these members no longer. Returns them; the caller ends their actors."""
        with self._changed:
            removed = [self._members.pop(name).running for name in names if name in self._members]
            self._changed.notify_all()
        self._on_change(self.entries())
        return removed

    def remove_all(self) -> list[RunningMember]:
        """Supervises nobody any longer; says so to nobody."""
        with self._changed:
            removed = [member.running for member in self._members.values()]
            self._members.clear()
        return removed

    def entries(self) -> list[MemberEntry]:
        """The members, in the order of their start."""
        with self._changed:
            return [member.entry for member in self._members.values()]

    def down_s(self, name: str) -> float:
        """Seconds for which a member has been down; 0 if it serves, or is none of ours."""
        with self._changed:
            since = self._members[name].down_since if name in self._members else None
        return 0.0 if since is None else time.monotonic() - since

    def addresses(self) -> dict[str, str]:
        """Addresses of the members by name; of one that is being restarted, its last one; of a new one, none yet."""
        with self._changed:
            return {name: member.running.address for name, member in self._members.items()}

    def standby_pid(self) -> int:
        """Process id of the standby that is ready; 0: there is none."""
        return self._standby.pid

    def pids(self, timeout_s: float, check_alive: Callable[[], None]) -> dict[str, int]:
        """Process ids of the members by name, when all of them serve.

        Args:
            timeout_s: seconds to wait at most for members that are being restarted.
            check_alive: called now and then while waiting; raises Unavailable if nobody will restart them.

        Raises:
            Unavailable: a member is not back within `timeout_s` seconds, or `check_alive` says so.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                self._changed.wait_for(self._all_up, max(0.0, min(_POLL_S, deadline - time.monotonic())))
                down = [member.entry for member in self._members.values() if not member.entry.up]
                if not down:
                    return {name: member.running.pid for name, member in self._members.items()}
            self.check_alive()
            check_alive()
            if time.monotonic() >= deadline:
                raise Unavailable("; ".join(f"{entry.name} is not back in time: {entry.last_failure}" for entry in down))

    def _all_up(self) -> bool:
        return all(member.entry.up for member in self._members.values())

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._step()
        except BaseException as error:  # told by `check_alive`
            log.critical("the supervisor failed", exc_info=error)
            self._error = error
        finally:
            self._standby.kill()

    def _step(self) -> None:
        with self._changed:
            if self._all_up():  # until then, it would take computing time from those that start
                self._standby.launch_if_due()
            calls = [member.call for member in self._members.values() if member.call is not None] + self._standby.calls
        for call in self._wait_calls(calls):
            with self._changed:
                owner = next((member for member in self._members.values() if member.call == call), None)
                if owner is not None:
                    self._ended(owner, call)
                elif call in self._standby.calls:
                    self._standby.ended(call)
        with self._changed:
            for member in self._members.values():
                if member.retry is not None and time.monotonic() >= member.retry_at:
                    retry, member.retry = member.retry, None
                    retry()

    def _wait_calls(self, calls: list[Any]) -> list[Any]:
        """Waits a while for pending calls to end. Returns those that have."""
        try:
            if calls:
                done, _ = ray.wait(calls, timeout=_POLL_S)
                return list(done)
        except ray.exceptions.RayError as error:
            log.info("Ray does not answer: %s", error)
        self._stopping.wait(_POLL_S)
        return []

    def _ended(self, member: _Supervised, call: Any) -> None:
        """Handles the end of a member's pending call."""
        member.call = None
        answer: Any = None
        error: Any = None
        try:
            answer = ray.get(call)
        except ray.exceptions.RayError as caught:
            error = caught
        match member.state:
            case _State.UP:
                cause = str(answer) if error is None else in_words(error)
                self._is_down(member, cause)
                if error is None:
                    self._await_end(member)
                elif cause == NODE_LOST:  # whoever follows the nodes removes the member
                    self._try_later(member, lambda: self._restart(member))
                elif isinstance(error, ray.exceptions.ActorUnavailableError):
                    self._kill(member)  # it may still serve, where Ray does not reach it
                else:
                    self._restart(member)
            case _State.ENDING if isinstance(error, ray.exceptions.ActorUnavailableError):
                self._try_later(member, lambda: self._await_end(member))
            case _State.ENDING if member.killed:
                member.killed = False
                self._try_later(member, lambda: self._restart(member))
            case _State.ENDING:
                self._restart(member)
            case _State.STARTING:
                address, problem, pid = answer or ("", in_words(error), 0)
                if problem:
                    self._cannot_start(member, problem)
                else:
                    self._is_up(member, address, pid)

    def _is_down(self, member: _Supervised, cause: str) -> None:
        if self._stopping.is_set():
            return
        log.warning("%s (process %d) ended: %s; it is being restarted", member.entry.name, member.running.pid, cause)
        member.down_since = time.monotonic()
        self._change(member, up=False, restarts=member.entry.restarts + 1, last_failure=cause)

    def _kill(self, member: _Supervised) -> None:
        ray.kill(member.running.actor, no_restart=True)
        member.killed = True
        self._await_end(member)

    def _await_end(self, member: _Supervised) -> None:
        member.state, member.call = _State.ENDING, member.running.actor.end.remote()

    def _restart(self, member: _Supervised) -> None:
        if self._stopping.is_set():
            return
        spec = member.running.spec
        fits = spec.on_standby and spec.node_id == self._standby.node_id
        member.running.actor = (self._standby.take() if fits else None) or launch(None, spec.node_id, spec.gpus)
        self._serve(member)

    def _serve(self, member: _Supervised) -> None:
        spec = member.running.spec
        call = member.running.actor.serve.remote(spec.make, spec.named_context, _START_S)
        member.state, member.call = _State.STARTING, call

    def _cannot_start(self, member: _Supervised, problem: str) -> None:
        if problem != member.entry.last_failure:
            log.warning("%s cannot start: %s", member.entry.name, problem)
            self._change(member, last_failure=problem)
        self._kill(member)  # its process may be alive, and serve, even if the call was lost

    def _try_later(self, member: _Supervised, call: Callable[[], None]) -> None:
        member.state, member.retry, member.retry_at = _State.WAITING, call, time.monotonic() + _RETRY_S

    def _is_up(self, member: _Supervised, address: str, pid: int) -> None:
        verb = "is back" if member.entry.restarts else "serves"
        log.warning("%s %s at %s after %.1f s", member.entry.name, verb, address, self.down_s(member.entry.name))
        member.running.address, member.running.pid, member.down_since = address, pid, None
        member.state, member.call = _State.UP, member.running.actor.failure.remote()
        self._change(member, up=True)

    def _change(self, member: _Supervised, **changes: Any) -> None:
        with self._changed:
            member.entry = replace(member.entry, **changes)
            self._changed.notify_all()
        self._on_change(self.entries())
