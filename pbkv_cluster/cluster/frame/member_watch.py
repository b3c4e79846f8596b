"""Watches the members: tells why one has ended and when it is back, here and in the directory."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray

from pbkv_cluster.cluster.frame.ray_messages import RayMessages, in_words
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, MemberEntry, connect

log = logging.getLogger(__name__)

_POLL_S = 0.5
_RETRY_S = 0.3
_CAUSE_S = 1.0  # in which Ray says why a process has ended
_RETRY_FOREVER = -1
_READY_S = 3600.0  # for a member to start again; whether that is too long, `down_since` tells


@dataclass(slots=True)
class _Watched:
    actor: Any
    entry: MemberEntry
    pid: int
    down_since: float | None = None


class MemberWatch:
    """Watches members from a thread, by a call to each that only ends with its process.

    A member is `up`, and a call of `failure` is pending; or it is down, and a call of `ready` is.
    """

    def __init__(
        self,
        actors: Mapping[str, Any],
        pids: Mapping[str, int],
        messages: RayMessages,
        redis_url: str,
        cluster: str,
        ttl_s: float,
    ) -> None:
        """Args:
        actors: handles of the members' actors by name; all of them serve.
        pids: their process ids by name.
        messages: what Ray says about processes that have ended.
        redis_url: of the directory.
        cluster: name of the cluster.
        ttl_s: seconds after which a member's entry is gone if this process no longer renews it.
        """
        self._members = {name: _Watched(actor, MemberEntry(name, True, 0, ""), pids[name]) for name, actor in actors.items()}
        self._messages = messages
        self._redis_url, self._cluster, self._ttl_s = redis_url, cluster, ttl_s
        self._calls: dict[Any, str] = {}  # pending, by name
        self._retries: dict[str, float] = {}  # when to ask a member that is down again
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="member-watch", daemon=True)

    def start(self) -> None:
        for name, member in self._members.items():
            self._calls[member.actor.failure.remote()] = name
        self._thread.start()

    def stop(self) -> None:
        """Stops watching, and withdraws the entries. May be called again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def entries(self) -> list[MemberEntry]:
        """The members, in the order of their start."""
        return [member.entry for member in self._members.values()]

    def down_s(self, name: str) -> float:
        """Seconds for which a member has been down; 0 if it serves."""
        since = self._members[name].down_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        renew_at = 0.0
        while not self._stopping.is_set():
            if time.monotonic() >= renew_at:
                self._announce()
                renew_at = time.monotonic() + self._ttl_s / 3
            before = self.entries()
            for call in self._wait_calls():
                self._ended(self._calls.pop(call), call)
            for name in [name for name, at in self._retries.items() if time.monotonic() >= at]:
                del self._retries[name]
                self._await_ready(name)
            if self.entries() != before:
                renew_at = 0.0
        self._withdraw()

    def _wait_calls(self) -> list[Any]:
        """Waits a while for pending calls to end. Returns one that has, or none."""
        try:
            if self._calls:
                return list(ray.wait(list(self._calls), timeout=_POLL_S)[0])
        except ray.exceptions.RayError as error:
            log.info("Ray does not answer: %s", error)
        self._stopping.wait(_POLL_S)
        return []

    def _ended(self, name: str, call: Any) -> None:
        """Handles the end of a member's pending call."""
        member = self._members[name]
        try:
            answer = ray.get(call)
        except ray.exceptions.RayError as error:
            if member.down_since is not None:
                self._retries[name] = time.monotonic() + _RETRY_S
            else:
                lost = isinstance(error, ray.exceptions.ActorUnavailableError)
                self._is_down(name, self._messages.cause(member.pid, _CAUSE_S) if lost else in_words(error))
            return
        if member.down_since is None:
            self._is_down(name, answer)
        else:
            self._is_ready(name, *answer)

    def _is_down(self, name: str, cause: str) -> None:
        if self._stopping.is_set():
            return
        member = self._members[name]
        log.warning("%s (process %d) ended: %s; it is being restarted", name, member.pid, cause)
        member.down_since = time.monotonic()
        member.entry = replace(member.entry, up=False, restarts=member.entry.restarts + 1, last_failure=cause)
        self._await_ready(name)

    def _is_ready(self, name: str, address: str, problem: str, pid: int) -> None:
        member = self._members[name]
        if problem or pid == member.pid:  # it cannot start, or is the process that is about to end
            if problem and problem != member.entry.last_failure:
                log.warning("%s cannot start again: %s", name, problem)
                member.entry = replace(member.entry, last_failure=problem)
            self._retries[name] = time.monotonic() + _RETRY_S
            return
        log.warning("%s is back at %s after %.1f s", name, address, self.down_s(name))
        member.pid, member.down_since = pid, None
        member.entry = replace(member.entry, up=True)
        self._calls[member.actor.failure.remote()] = name

    def _await_ready(self, name: str) -> None:
        # With retries, Ray repeats a call that is lost with a process once the actor runs again.
        ready = self._members[name].actor.ready.options(max_task_retries=_RETRY_FOREVER)
        self._calls[ready.remote(_READY_S)] = name

    def _announce(self) -> None:
        asyncio.run(self._each_entry(Directory.announce_member))

    def _withdraw(self) -> None:
        asyncio.run(self._each_entry(Directory.withdraw_member))

    async def _each_entry(self, call: Any) -> None:
        redis = connect(self._redis_url)
        directory = Directory(redis, self._cluster, self._ttl_s)
        try:
            await asyncio.gather(*(call(directory, entry) for entry in self.entries()))
        except Unavailable as error:
            log.info("the directory does not answer: %s", error)
        finally:
            await redis.aclose()
