"""One node of the cluster: its members, and how far its drain is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from pbkv_cluster.cluster.frame.actors import MemberSpec
from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.worker_member import WORKER_PREFIX
from pbkv_cluster.store.cluster_index import NodeState, NodeStateEntry


@dataclass(slots=True)
class Node:
    """A node that lives, or did a moment ago. Times are on the monotonic clock, in seconds."""

    ray: RayNode
    state: NodeState
    members: list[str] = field(default_factory=list)
    reason: str = ""  # why it is drained or unused
    placed_until: float = 0.0  # while it drains: until then, a gateway may not have heard of it
    deadline: float = 0.0  # while it drains: then its members end, whatever runs there

    @classmethod
    def placed(cls, ray_node: RayNode, specs: Sequence[MemberSpec]) -> Self:
        """A node whose members are about to start."""
        state = NodeState.STARTING if specs else NodeState.UNUSED
        return cls(ray_node, state, [spec.name for spec in specs], "" if specs else "it has no GPU")

    @property
    def workers(self) -> list[str]:
        return [name for name in self.members if name.startswith(WORKER_PREFIX)]

    @property
    def title(self) -> str:
        """For people."""
        return f"node {self.ray.host} ({self.ray.node_id[:12]})"

    def entry(self) -> NodeStateEntry:
        return NodeStateEntry(self.ray.node_id, self.ray.host, self.state, self.reason)
