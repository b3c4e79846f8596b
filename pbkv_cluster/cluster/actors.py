"""The Ray actor: a thin shell around a member, the same for every kind of member.

A member starts when its actor is created, so one that Ray restarts serves again without a call.
"""

import logging
import os
import time
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pbkv_cluster.cluster.member import MakeMember, MemberContext
from pbkv_cluster.cluster.member_thread import MemberThread
from pbkv_cluster.core.errors import PbkvError

log = logging.getLogger(__name__)

_EXIT_FAILED = 70  # exit status of a process whose member failed
_RESTART_PAUSE_S = 1.0
_STOP_S = 15.0


class MemberActor:
    """Runs one member."""

    def __init__(self, make: MakeMember, context: MemberContext) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        runtime = ray.get_runtime_context()
        context = replace(context, host=context.host or ray.util.get_node_ip_address(), node_id=runtime.get_node_id())
        self._member = MemberThread(lambda: make(context), _exit)
        if runtime.was_current_actor_reconstructed:
            self._member.started.add_done_callback(_exit_if_failed)

    def ready(self, timeout_s: float) -> tuple[str, str]:
        """Waits until the member serves. Returns its address and "", or "" and why it cannot start."""
        try:
            return self._member.started.result(timeout_s), ""
        except TimeoutError:
            return "", f"not ready after {timeout_s:.0f} s (cluster.start_timeout_s)"
        except PbkvError as error:
            return "", str(error)
        except Exception as error:  # reported by the process that starts the cluster
            log.exception("a member cannot start")
            return "", f"{type(error).__name__}: {error}"

    def pid(self) -> int:
        """Process id of the member."""
        return os.getpid()

    def stop(self) -> None:
        """Stops the member in good order."""
        self._member.stop(_STOP_S)


def _exit(error: BaseException) -> None:
    """Ends the process, so that Ray starts another."""
    log.critical("exiting for a restart", exc_info=error)
    logging.shutdown()
    os._exit(_EXIT_FAILED)


def _exit_if_failed(started: Any) -> None:
    """A restarted member that cannot start exits after a pause, so that Ray tries again."""
    error = started.exception()
    if error is not None:
        time.sleep(_RESTART_PAUSE_S)
        _exit(error)


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
        max_concurrency=4,
        scheduling_strategy=strategy,
    )
    return actor.remote(make, context)
