"""The members of a cluster as a group of actors: launched together, awaited together, stopped in order."""

import time
from collections.abc import Callable
from typing import Any

import ray

from pbkv_cluster.cluster.actors import launch
from pbkv_cluster.cluster.member import MakeMember, MemberContext
from pbkv_cluster.core.errors import StartupError, Unavailable

_STOP_S = 20.0
_RETRY_FOREVER = -1


class ActorGroup:
    """Actors by the names of their members."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}

    def launch(self, name: str, make: MakeMember, context: MemberContext, gpus: float = 0, node_id: str | None = None) -> None:
        """Adds an actor, as `actors.launch` does."""
        self._actors[name] = launch(name, make, context, gpus=gpus, node_id=node_id)

    def await_ready(self, timeout_s: float, on_ready: Callable[[str], None]) -> dict[str, str]:
        """Waits until all members serve; calls `on_ready` with the name of each that does. Returns their addresses by name.

        Raises:
            StartupError: a member cannot start or takes longer than `timeout_s` seconds.
        """
        pending = {actor.ready.remote(timeout_s): name for name, actor in self._actors.items()}
        deadline = time.monotonic() + timeout_s
        addresses: dict[str, str] = {}
        while pending:
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = ", ".join(sorted(pending.values()))
                raise StartupError(f"not ready after {timeout_s:.0f} s (cluster.start_timeout_s): {late}")
            name = pending.pop(done[0])
            try:
                addresses[name], problem = ray.get(done[0])
            except ray.exceptions.RayError as error:
                raise StartupError(f"{name} died while it started: {error}") from error
            if problem:
                raise StartupError(f"{name} cannot start: {problem}")
            on_ready(name)
        return addresses

    def pids(self, timeout_s: float) -> dict[str, int]:
        """Process ids of the members by name. A member that is being restarted is waited for.

        Raises:
            Unavailable: a member is not back within `timeout_s` seconds, or Ray is lost.
        """
        # With retries, Ray repeats a call that is lost with a process once the actor runs again.
        calls = {name: actor.pid.options(max_task_retries=_RETRY_FOREVER).remote() for name, actor in self._actors.items()}
        deadline = time.monotonic() + timeout_s
        pids: dict[str, int] = {}
        for name, call in calls.items():
            try:
                pids[name] = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError as error:
                raise Unavailable(f"{name} is not back after {timeout_s:.0f} s") from error
            except ray.exceptions.RayError as error:
                raise Unavailable(f"{name} cannot be asked for its process id: {error}") from error
        return pids

    def stop(self, first: str) -> None:
        """Stops the member called `first`, then all others, and ends the actors. May be called again."""
        if not ray.is_initialized():
            return
        for names in ((first,), [name for name in self._actors if name != first]):
            stopping = [self._actors[name].stop.remote() for name in names if name in self._actors]
            if stopping:
                ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()
