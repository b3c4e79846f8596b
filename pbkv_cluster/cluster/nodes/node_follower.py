"""Follows the nodes of a Ray cluster: members start on those that join, and leave those that are drained or lost."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pbkv_cluster.cluster.frame import ray_nodes
from pbkv_cluster.cluster.frame.actor_group import stop_members
from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.frame.supervisor import Supervisor
from pbkv_cluster.cluster.nodes.node import Node
from pbkv_cluster.cluster.nodes.node_plan import NodePlan
from pbkv_cluster.cluster.nodes.node_requests import NodeRequests
from pbkv_cluster.cluster.nodes.running_steps import running_steps
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import NodeRequest, NodeState, NodeStateEntry

log = logging.getLogger(__name__)

_POLL_S = 1.0
_GATEWAYS_HEAR_S = 2.0  # a gateway reads the nodes' states twice a second
_STOP_S = 5.0  # before Ray ends a node, for its members to end in good order


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a follower sees and does outside the process: Ray's nodes, members, their steps, and the time."""

    living: Callable[[], list[RayNode]] = ray_nodes.living
    draining: Callable[[], dict[str, float]] = ray_nodes.draining
    stop_members: Callable[[list[Any]], None] = stop_members
    running_steps: Callable[[list[str]], int] = running_steps
    now: Callable[[], float] = time.monotonic  # seconds


class NodeFollower:
    """Compares what Ray says of the nodes with what runs on them, once a second, from a thread of its own.

    A node that Ray or an operator drains gets no new steps. Its members end when its steps have, or at a deadline: then the
    gateway has what still runs go on elsewhere.
    """

    def __init__(
        self,
        plan: NodePlan,
        supervisor: Supervisor,
        nodes: Sequence[Node],
        drain_timeout_s: float,
        requests: NodeRequests,
        show: Callable[[Sequence[NodeStateEntry]], None],
        report: Callable[[str], None],
        around: Surroundings | None = None,
    ) -> None:
        """Args:
        plan: what a node gets that joins.
        supervisor: of all members.
        nodes: those of the cluster's start.
        drain_timeout_s: seconds for which steps may go on at a node that is drained.
        requests: what operators ask; to obey one twice is harmless.
        show: takes the state of every node, after each comparison.
        report: takes one line for each thing that has happened.
        around: by default the real ones.
        """
        self._around = around or Surroundings()
        self._plan, self._supervisor, self._drain_timeout_s = plan, supervisor, drain_timeout_s
        self._requests, self._show, self._report = requests, show, report
        self._nodes = {node.ray.node_id: node for node in nodes}
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Follows no longer. May be called again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def check_alive(self) -> None:
        """Raises:
        Unavailable: the follower itself has failed.
        """
        if self._error is not None:
            raise Unavailable(f"nodes are not followed any more: {type(self._error).__name__}: {self._error}")

    def poll(self) -> None:
        """One comparison."""
        living = {node.node_id: node for node in self._around.living()}
        leaving = self._around.draining()
        requests = self._requests.read()
        wanted = {request.node_id: request for request in requests}
        for node in [node for node_id, node in self._nodes.items() if node_id not in living]:
            self._lost(node)
        for node_id, ray_node in living.items():
            if node_id not in self._nodes and node_id not in leaving:
                self._start(ray_node, "has joined")
        up = {entry.name for entry in self._supervisor.entries() if entry.up}
        for node_id, node in list(self._nodes.items()):
            self._take_note(node, leaving.get(node_id), wanted.get(node_id))
            self._advance(self._nodes[node_id], up)
        self._requests.withdraw(requests)  # only now: what is above may fail, and is done again then
        self._show([node.entry() for node in self._nodes.values()])

    def _run(self) -> None:
        from ray.exceptions import RayError

        try:
            while not self._stopping.is_set():
                try:
                    self.poll()
                except (RayError, Unavailable) as error:  # the next comparison sees what this one has missed
                    log.warning("the nodes cannot be looked at now: %s", error)
                self._stopping.wait(_POLL_S)
        except BaseException as error:  # told by `check_alive`
            log.critical("the follower of nodes failed", exc_info=error)
            self._error = error

    def _start(self, ray_node: RayNode, what: str) -> None:
        specs = self._plan.members_of(ray_node)
        node = self._nodes[ray_node.node_id] = Node.placed(ray_node, specs)
        self._supervisor.add(specs)
        self._report(f"{node.title} {what}: {', '.join(node.members) or 'no worker, it has no GPU'}")

    def _lost(self, node: Node) -> None:
        del self._nodes[node.ray.node_id]
        self._plan.left(node.members)
        names = ", ".join(node.members)
        self._around.stop_members(self._supervisor.remove(node.members))  # they may live on, where Ray does not reach them
        self._report(f"{node.title} has left" if not names else f"{node.title} is lost, and with it {names}")

    def _take_note(self, node: Node, ray_ends_in_s: float | None, request: NodeRequest | None) -> None:
        """Begins or takes back a drain, where somebody has asked for it."""
        serves = node.state in (NodeState.STARTING, NodeState.SERVING, NodeState.UNUSED)
        if ray_ends_in_s is not None and serves:
            self._drain(node, "Ray drains it", min(self._drain_timeout_s, ray_ends_in_s - _STOP_S))
        elif request is not None and request.drain and serves:
            self._drain(node, request.reason or "an operator drains it", self._drain_timeout_s)
        elif request is not None and not request.drain and ray_ends_in_s is None:
            if node.state is NodeState.DRAINING:
                node.state, node.reason = NodeState.SERVING, ""
                self._report(f"{node.title} serves again")
            elif node.state is NodeState.DRAINED:
                self._start(node.ray, "is used again")

    def _drain(self, node: Node, reason: str, timeout_s: float) -> None:
        now = self._around.now()
        node.state, node.reason = NodeState.DRAINING, reason
        node.placed_until, node.deadline = now + _GATEWAYS_HEAR_S, now + timeout_s
        self._report(f"{node.title} gets no new steps: {reason}")

    def _advance(self, node: Node, up: set[str]) -> None:
        if node.state is NodeState.STARTING and up.issuperset(node.members):
            node.state = NodeState.SERVING
        elif node.state is NodeState.DRAINING and self._has_drained(node, up):
            self._around.stop_members(self._supervisor.remove(node.members))
            self._plan.left(node.members)
            node.state, node.members = NodeState.DRAINED, []
            self._report(f"{node.title} is drained")

    def _has_drained(self, node: Node, up: set[str]) -> bool:
        now = self._around.now()
        if now >= node.deadline:
            return True
        addresses = self._supervisor.addresses()
        return now >= node.placed_until and not self._around.running_steps(
            [addresses[name] for name in node.workers if name in up]
        )
