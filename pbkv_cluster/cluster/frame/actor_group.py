"""The members of a cluster as a group of actors: launched together, awaited together, supervised, and stopped in order."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pbkv_cluster.cluster.frame.actors import MemberSpec, launch
from pbkv_cluster.cluster.frame.causes import in_words
from pbkv_cluster.cluster.frame.standby import Standby
from pbkv_cluster.cluster.frame.supervisor import RunningMember, Supervisor
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.store.cluster_index import MemberEntry

_STOP_S = 20.0


class ActorGroup:
    """Actors by the names of their members."""

    def __init__(self, timeout_s: float) -> None:
        """Args:
        timeout_s: seconds within which every member must serve.
        """
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._members: dict[str, RunningMember] = {}
        self._starting: dict[Any, str] = {}  # pending calls of `serve`, by name
        self._supervisor: Supervisor | None = None  # knows the members from when it supervises them

    def launch(self, spec: MemberSpec) -> None:
        """Adds a member, and starts it without waiting for it."""
        actor = launch(spec.name, spec.node_id, spec.gpus)
        self._members[spec.name] = RunningMember(spec, actor, address="", pid=0)
        self._starting[actor.serve.remote(spec.make, spec.named_context, self._timeout_s)] = spec.name

    def await_ready(self, on_ready: Callable[[str], None]) -> None:
        """Waits until all members serve; calls `on_ready` with the name of each that does.

        Raises:
            StartupError: a member cannot start or takes too long.
        """
        while self._starting:
            done, _ = ray.wait(list(self._starting), timeout=max(0.0, self._deadline - time.monotonic()))
            if not done:
                late = ", ".join(sorted(self._starting.values()))
                raise StartupError(f"not ready after {self._timeout_s:.0f} s (cluster.start_timeout_s): {late}")
            name = self._starting.pop(done[0])
            try:
                address, problem, pid = ray.get(done[0])
            except ray.exceptions.RayError as error:
                raise StartupError(f"{name} died while it started: {in_words(error)}") from error
            if problem:
                raise StartupError(f"{name} cannot start: {problem}")
            self._members[name].address, self._members[name].pid = address, pid
            on_ready(name)

    def supervise(self, standby: Standby, on_change: Callable[[Sequence[MemberEntry]], None]) -> Supervisor:
        """A supervisor of all members, not yet started. They must be ready."""
        self._supervisor = Supervisor(list(self._members.values()), standby, on_change)
        return self._supervisor

    def stop(self, first: Callable[[str], bool]) -> None:
        """Stops the members whose names are `first`, then all others, and ends the actors. May be called again.

        Whoever supervises them must have stopped before.
        """
        if not ray.is_initialized():
            return
        members = list(self._members.values()) if self._supervisor is None else self._supervisor.remove_all()
        self._members.clear()
        stop_members([each for each in members if first(each.spec.name)])
        stop_members([each for each in members if not first(each.spec.name)])


def stop_members(members: Sequence[RunningMember]) -> None:
    """Stops members in good order, side by side, and ends their actors. Those that do not answer in time are killed."""
    stopping = [member.actor.stop.remote() for member in members]
    if stopping:
        ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
    for member in members:
        ray.kill(member.actor, no_restart=True)
