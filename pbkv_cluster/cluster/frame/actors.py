"""The Ray actor: a thin shell around a member, the same for every kind of member.

A member starts when its actor is created, so one that Ray restarts serves again without a call.
"""

import logging
import os
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pbkv_cluster.cluster.frame.member_thread import MemberThread
from pbkv_cluster.cluster.membership.member import MakeMember, MemberContext
from pbkv_cluster.core.errors import PbkvError

log = logging.getLogger(__name__)

_EXIT_FAILED = 70  # exit status of a process whose member failed
_RESTART_PAUSE_S = 1.0
_STOP_S = 15.0
_TELL_S = 0.2  # for the cause of a failure to reach the process that started the cluster


class MemberActor:
    """Runs one member."""

    def __init__(self, make: MakeMember, context: MemberContext) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        runtime = ray.get_runtime_context()
        context = replace(context, host=context.host or ray.util.get_node_ip_address(), node_id=runtime.get_node_id())
        self._failure: Future[str] = Future()
        self._member = MemberThread(lambda: make(context), self._exit)
        if runtime.was_current_actor_reconstructed:
            self._member.started.add_done_callback(self._exit_if_failed)

    def ready(self, timeout_s: float) -> tuple[str, str, int]:
        """Waits until the member serves. Returns its address, why it cannot start (empty if it can), and its process id."""
        address = problem = ""
        try:
            address = self._member.started.result(timeout_s)
        except TimeoutError:
            problem = f"not ready after {timeout_s:.0f} s (cluster.start_timeout_s)"
        except Exception as error:  # reported by the process that starts the cluster
            log.exception("a member cannot start")
            problem = _in_words(error)
        return address, problem, os.getpid()

    def failure(self) -> str:
        """Waits until the member fails, and returns why. The call is lost if its process is killed."""
        return self._failure.result()

    def pid(self) -> int:
        """Process id of the member."""
        return os.getpid()

    def stop(self) -> None:
        """Stops the member in good order."""
        self._member.stop(_STOP_S)

    def _exit(self, error: BaseException) -> None:
        """Ends the process, so that Ray starts another."""
        log.critical("exiting for a restart", exc_info=error)
        self._failure.set_result(_in_words(error))
        time.sleep(_TELL_S)
        logging.shutdown()
        os._exit(_EXIT_FAILED)

    def _exit_if_failed(self, started: Future[str]) -> None:
        """A restarted member that cannot start exits after a pause, so that Ray tries again."""
        error = started.exception()
        if error is not None:
            time.sleep(_RESTART_PAUSE_S)
            self._exit(error)


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, PbkvError) else f"{type(error).__name__}: {error}"


def launch(name: str, make: MakeMember, context: MemberContext, gpus: float = 0, node_id: str | None = None) -> Any:
    """Creates an actor without waiting for it. Returns its Ray handle.

    Args:
        name: of the actor, in the namespace of the driver.
        make: makes the member from its context.
        context: an empty host stands for the node's own address; the node id is filled in.
        gpus: number of GPUs that the member uses.
        node_id: the node to run on; by default Ray chooses and spreads members over nodes.
    """
    strategy: Any = NodeAffinitySchedulingStrategy(node_id, soft=False) if node_id else "SPREAD"
    actor = ray.remote(MemberActor).options(
        name=name,
        num_cpus=0,
        num_gpus=gpus,
        max_restarts=-1,
        max_concurrency=8,
        scheduling_strategy=strategy,
    )
    return actor.remote(make, context)
