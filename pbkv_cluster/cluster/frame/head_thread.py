"""Runs the head's endpoint and the dashboard, each on a thread of its own, in the process that started the cluster."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from pbkv_cluster.cluster.frame import ray_nodes
from pbkv_cluster.cluster.frame.member_thread import MemberThread
from pbkv_cluster.cluster.frame.supervisor import Supervisor
from pbkv_cluster.cluster.membership.head import Head
from pbkv_cluster.cluster.membership.member import MakeMember, Member, MemberContext
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.rpc.services import DISCOVERY_PATH

_STOP_S = 5.0


class HeadThread:
    """Serves until `stop`."""

    def __init__(
        self,
        context: MemberContext,
        supervisor: Supervisor,
        report: Callable[[str], None],
        dashboard: MakeMember | None = None,
    ) -> None:
        """Args:
        context: as that of a member of this node.
        supervisor: knows how the members do.
        report: takes a line if a part fails.
        dashboard: makes the pages for operators; None: there are none.

        Raises:
            StartupError: a port cannot be bound, or the dashboard cannot start.
        """
        here = replace(context, host=context.host or ray_nodes.this_node_address(), node_id=ray_nodes.this_node_id())
        self._report = report
        self._stack = ExitStack()
        self.dashboard_url = ""  # empty: none
        try:
            address = self._serve(
                lambda: Head(here, supervisor.entries, supervisor.standby_pid), "Prometheus cannot find the members any more"
            )
            self.discovery_url = f"{this_process().http}://{address}{DISCOVERY_PATH}"
            if dashboard is not None:
                address = self._serve(lambda: dashboard(here), "the dashboard has failed")
                self.dashboard_url = f"{this_process().http}://{address}/"
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._stack.close()

    def _serve(self, make: Callable[[], Member], lost: str) -> str:
        thread = MemberThread(make, lambda error: self._report(f"problem: {lost}: {error}"))
        self._stack.callback(thread.stop, _STOP_S)
        return thread.started.result()
