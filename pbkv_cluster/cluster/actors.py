"""The Ray actor: a thin shell around a member, the same for all of them.

A member starts as its actor is made, so one that Ray restarts serves again without being asked.
"""

import logging
import os
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pbkv_cluster.cluster.member_context import MakeMember, MemberContext
from pbkv_cluster.cluster.member_thread import MemberThread
from pbkv_cluster.core.errors import PbkvError

log = logging.getLogger(__name__)

_FAILED = 70  # exit status of a process whose member failed
_RESTART_PAUSE_S = 1.0
_STOP_S = 15.0


class MemberActor:
    """Runs one member."""

    def __init__(self, make: MakeMember, site: MemberContext) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        context = ray.get_runtime_context()
        self._site = MemberContext(
            site.config, site.redis_url, site.host or ray.util.get_node_ip_address(), context.get_node_id(), site.state_dir
        )
        self._member = MemberThread(lambda: make(self._site), _exit)
        if context.was_current_actor_reconstructed:
            self._member.started.add_done_callback(_exit_if_failed)

    def ready(self, timeout_s: float) -> tuple[str, str]:
        """Waits for the member. Returns its address and "", or "" and why it cannot start."""
        try:
            return self._member.started.result(timeout_s), ""
        except TimeoutError:
            return "", f"not ready after {timeout_s:.0f} s (cluster.start_timeout_s)"
        except PbkvError as error:
            return "", str(error)
        except Exception as error:  # reported to whoever starts the cluster
            log.exception("a member cannot start")
            return "", f"{type(error).__name__}: {error}"

    def pid(self) -> int:
        """Of the process that the member runs in."""
        return os.getpid()

    def stop(self) -> None:
        """Ends the member in good order."""
        self._member.stop(_STOP_S)


def _exit(error: BaseException) -> None:
    """Ends the process, which makes Ray start another."""
    log.critical("leaving for a restart", exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)


def _exit_if_failed(started: Any) -> None:
    """A member that could not start again tries once more, after a pause."""
    error = started.exception()
    if error is not None:
        time.sleep(_RESTART_PAUSE_S)
        _exit(error)


def launch(name: str, make: MakeMember, site: MemberContext, gpus: float = 0, node_id: str | None = None) -> Any:
    """Starts an actor; it does not wait for it.

    Args:
        name: of the actor, in the namespace of the driver.
        make: makes the member from its site.
        site: of the cluster; an empty host stands for the node's own address.
        gpus: that the member uses.
        node_id: the node to run on; by default Ray chooses, spreading members of one kind.
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
    return actor.remote(make, site)
