"""Runs the head's endpoint on a thread of its own, in the process that started the cluster."""

from collections.abc import Callable
from dataclasses import replace

from pbkv_cluster.cluster.frame import ray_nodes
from pbkv_cluster.cluster.frame.member_thread import MemberThread
from pbkv_cluster.cluster.frame.supervisor import Supervisor
from pbkv_cluster.cluster.membership.head import Head
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.rpc.services import DISCOVERY_PATH

_STOP_S = 5.0


class HeadThread:
    """Serves until `stop`."""

    def __init__(self, context: MemberContext, supervisor: Supervisor, report: Callable[[str], None]) -> None:
        """Args:
        context: as that of a member of this node.
        supervisor: knows how the members do.
        report: takes a line if the endpoint fails.

        Raises:
            StartupError: the port cannot be bound.
        """
        here = replace(context, host=context.host or ray_nodes.this_node_address(), node_id=ray_nodes.this_node_id())
        self._thread = MemberThread(
            lambda: Head(here, supervisor.entries, supervisor.standby_pid),
            lambda error: report(f"problem: Prometheus cannot find the members any more: {error}"),
        )
        self.discovery_url = f"http://{self._thread.started.result()}{DISCOVERY_PATH}"

    def stop(self) -> None:
        self._thread.stop(_STOP_S)
