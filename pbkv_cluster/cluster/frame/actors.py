"""The Ray actor: a thin shell around a member, the same for every kind of member.

An actor serves one member in its life. Until then it may be a standby, which has loaded what members need. Ray restarts none of
them: the `Supervisor` does, for only it can give a member's work to a standby.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pbkv_cluster.cluster.frame.member_thread import MemberThread, prepare
from pbkv_cluster.cluster.membership.member import MakeMember, MemberContext
from pbkv_cluster.core.config import LoggingConfig
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.logs.setup import set_up_logs
from pbkv_cluster.rpc.security import set_up_security
from pbkv_cluster.rpc.tracing import set_up_tracing, stop_tracing

log = logging.getLogger(__name__)

_STANDBY = "standby"  # in its log
_EXIT_FAILED = 70  # exit status of a process whose member failed
_STOP_S = 15.0
_TELL_S = 0.2  # for the cause of a failure to reach the process that started the cluster


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """A member, and where it runs.

    `gpus` is the number of GPUs that it uses. `on_standby`: the standby of its node may take its place.
    """

    name: str
    make: MakeMember
    context: MemberContext
    node_id: str
    gpus: float = 0
    on_standby: bool = True

    @property
    def named_context(self) -> MemberContext:
        """The context, with the member's name in it."""
        return replace(self.context, name=self.name)


class MemberActor:
    """Runs one member, once it is told which."""

    def __init__(self) -> None:
        set_up_logs(LoggingConfig())  # until it is told the cluster's
        self._failure: Future[str] = Future()
        self._member: MemberThread | None = None
        self._loading = threading.Lock()  # two threads that import the same modules may see them half-made

    def prepare(self, makes: Sequence[MakeMember], context: MemberContext) -> int:
        """Loads what any of these members needs to start. Returns the process id.

        Args:
            makes: make members that this actor may come to serve.
            context: theirs, as in `serve`.
        """
        set_up_logs(context.config.logging, _STANDBY)
        with self._loading:
            for make in makes:
                prepare(make, _here(context))
        return os.getpid()

    def serve(self, make: MakeMember, context: MemberContext, timeout_s: float) -> tuple[str, str, int]:
        """Starts a member and waits until it serves.

        Args:
            make: makes the member from its context.
            context: an empty host stands for the node's own address; the node id is filled in.
            timeout_s: seconds to wait at most.

        Returns:
            Its address, why it cannot start (empty if it can), and the process id.
        """
        set_up_logs(context.config.logging, context.name)
        address = problem = ""
        with self._loading:
            here = _here(context)
            set_up_tracing(context.config.telemetry, context.name)
            try:
                set_up_security(context.config.security, context.cluster_key)
                self._member = MemberThread(lambda: make(here), self._exit)
                address = self._member.started.result(timeout_s)
            except TimeoutError:
                problem = f"not ready after {timeout_s:.0f} s (cluster.start_timeout_s)"
            except Exception as error:  # reported by the process that started the cluster
                log.exception("a member cannot start")
                problem = _in_words(error)
        return address, problem, os.getpid()

    def failure(self) -> str:
        """Waits until the member fails, and returns why. The call is lost if its process is killed."""
        return self._failure.result()

    def end(self) -> None:
        """Does not return: the call is lost when the process ends."""
        threading.Event().wait()

    def stop(self) -> None:
        """Stops the member in good order."""
        if self._member is not None:
            self._member.stop(_STOP_S)
        stop_tracing()

    def _exit(self, error: BaseException) -> None:
        """Ends the process, so that another takes its place."""
        log.critical("exiting for a restart", exc_info=error)
        self._failure.set_result(_in_words(error))
        time.sleep(_TELL_S)
        logging.shutdown()
        os._exit(_EXIT_FAILED)


def _here(context: MemberContext) -> MemberContext:
    host = context.host or ray.util.get_node_ip_address()
    return replace(context, host=host, node_id=ray.get_runtime_context().get_node_id())


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, PbkvError) else f"{type(error).__name__}: {error}"


def launch(name: str | None, node_id: str, gpus: float = 0) -> Any:
    """Creates an actor without waiting for it. Returns its Ray handle.

    Args:
        name: of the actor, in the namespace of the driver; Ray refuses a second one of the same name. None: it has none.
        node_id: the node to run on.
        gpus: number of GPUs that it uses.
    """
    actor = ray.remote(MemberActor).options(
        name=name,
        num_cpus=0,
        num_gpus=gpus,
        max_restarts=0,
        max_concurrency=8,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return actor.remote()
