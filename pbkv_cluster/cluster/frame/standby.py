"""The standby: a process without a member that has loaded what members need, and takes the place of the next one that ends."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray

from pbkv_cluster.cluster.frame.actors import launch
from pbkv_cluster.cluster.frame.causes import in_words
from pbkv_cluster.cluster.membership.member import MakeMember, MemberContext

log = logging.getLogger(__name__)

_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0


class Standby:
    """The standby of one node: at most one actor at a time, replaced when it ends or has been taken.

    Its owner passes on the end of each call in `calls`. One that ends before it is ready is replaced after a pause, each time a
    longer one: where memory is short, it must not make matters worse.
    """

    def __init__(self, makes: Sequence[MakeMember], context: MemberContext, node_id: str) -> None:
        """Args:
        makes: make the members that it may come to replace.
        context: theirs.
        node_id: the node that it is for.
        """
        self._makes, self._context, self.node_id = tuple(makes), context, node_id
        self._actor: Any = None
        self._preparing: Any = None  # call that ends when the actor is ready
        self._ending: Any = None  # call that ends with the actor
        self._pause_s = _PAUSE_S
        self._launch_at = 0.0
        self.pid = 0  # of the process that is ready; 0: none is

    @property
    def calls(self) -> list[Any]:
        """Pending calls, whose end `ended` is to be told."""
        return [call for call in (self._preparing, self._ending) if call is not None]

    def launch_if_due(self) -> None:
        """Launches an actor if there is none, unless the last one has ended just now."""
        if self._actor is None and time.monotonic() >= self._launch_at:
            self._actor = launch(None, self.node_id)
            self._preparing = self._actor.prepare.remote(self._makes, self._context)
            self._ending = self._actor.end.remote()

    def take(self) -> Any:
        """The actor, ready or nearly so, which is the caller's from now on; None: there is none."""
        actor = self._actor
        self._forget()
        return actor

    def ended(self, call: Any) -> None:
        """Handles the end of one of `calls`."""
        try:
            answer = ray.get(call)
        except ray.exceptions.RayError as error:
            log.warning(
                "the standby (process %s) ended: %s; it is being replaced", self.pid or "not known yet", in_words(error)
            )
            self.kill()
            self._launch_at = time.monotonic() + self._pause_s
            self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)
            return
        self._preparing, self.pid, self._pause_s = None, answer, _PAUSE_S

    def kill(self) -> None:
        """Ends the actor, if there is one."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._forget()

    def _forget(self) -> None:
        self._actor = self._preparing = self._ending = None
        self.pid = 0
