"""The members of a cluster as a group of actors: launched together, awaited together, watched, and stopped in order."""

import time
from collections.abc import Callable
from typing import Any

import ray

from pbkv_cluster.cluster.frame.actors import launch
from pbkv_cluster.cluster.frame.member_watch import MemberWatch
from pbkv_cluster.cluster.frame.ray_messages import RayMessages, in_words
from pbkv_cluster.cluster.membership.member import MakeMember, MemberContext
from pbkv_cluster.core.errors import StartupError, Unavailable

_STOP_S = 20.0
_RETRY_S = 0.2


class ActorGroup:
    """Actors by the names of their members."""

    def __init__(self, messages: RayMessages) -> None:
        """Args:
        messages: what Ray says about processes that have ended.
        """
        self._actors: dict[str, Any] = {}
        self._pids: dict[str, int] = {}  # at the start
        self._messages = messages

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
                addresses[name], problem, self._pids[name] = ray.get(done[0])
            except ray.exceptions.RayError as error:
                raise StartupError(f"{name} died while it started: {in_words(error)}") from error
            if problem:
                raise StartupError(f"{name} cannot start: {problem}")
            on_ready(name)
        return addresses

    def watch(self, redis_url: str, cluster: str, ttl_s: float) -> MemberWatch:
        """A watch over all members, not yet started. They must be ready."""
        return MemberWatch(self._actors, self._pids, self._messages, redis_url, cluster, ttl_s)

    def pids(self, timeout_s: float, check_alive: Callable[[], None]) -> dict[str, int]:
        """Process ids of the members by name. A member that is being restarted is waited for.

        Args:
            timeout_s: seconds to wait at most.
            check_alive: raises Unavailable if nobody will restart a member.

        Raises:
            Unavailable: a member is not back within `timeout_s` seconds, or Ray is lost.
        """
        deadline = time.monotonic() + timeout_s
        return {name: self._pid(name, deadline, check_alive) for name in self._actors}

    def _pid(self, name: str, deadline: float, check_alive: Callable[[], None]) -> int:
        while True:
            try:
                pid: int = ray.get(self._actors[name].pid.remote(), timeout=max(0.0, deadline - time.monotonic()))
                return pid
            except ray.exceptions.GetTimeoutError as error:
                raise Unavailable(f"{name} is not back in time") from error
            except ray.exceptions.RayError as error:  # the call was lost with the process, or came between two
                check_alive()
                if time.monotonic() + _RETRY_S >= deadline:
                    raise Unavailable(f"{name} cannot be asked for its process id: {in_words(error)}") from error
                time.sleep(_RETRY_S)

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
