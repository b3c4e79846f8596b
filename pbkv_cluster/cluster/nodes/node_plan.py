"""What each node of the cluster gets: a host store, its workers and perhaps a gateway, or nothing."""

import functools
import itertools
from collections.abc import Callable, Collection

from pbkv_cluster.cluster.frame.actors import MemberSpec
from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.member import Member, MemberContext
from pbkv_cluster.cluster.membership.members import HostStoreMember, WorkerMember
from pbkv_cluster.cluster.membership.worker_member import WORKER_PREFIX
from pbkv_cluster.cluster.nodes.gateway_plan import GatewayPlan
from pbkv_cluster.cluster.nodes.vllm_host import VllmHost
from pbkv_cluster.core.errors import StartupError


class NodePlan:
    """Names are never used twice, so that what the directory still knows of a lost node is nobody else's."""

    def __init__(self, context: MemberContext, nodes: Collection[RayNode], gateways: GatewayPlan | None = None) -> None:
        """Args:
        context: of the members.
        nodes: those of the cluster's start. Where one of them has a GPU, workers use GPUs, unless the configuration names
            another device. KV from a CPU is none for a GPU, so there is no mixture.
        gateways: plans those of the nodes; None: the nodes get none.

        Raises:
            StartupError: a node has fewer GPUs than it is to have workers, or no worker for our engine where one is meant.
        """
        device = context.config.engine.device
        self._on_gpus = device == "cuda" or (device == "auto" and any(node.gpus for node in nodes))
        self._per_node = context.config.cluster.workers
        self._engine, self._vllm = context.config.engine.type, context.config.vllm
        self._context = context
        self._gateways = gateways
        self._host_stores, self._workers = itertools.count(), itertools.count()
        for node in nodes:
            if self._on_gpus and 0 < node.gpus < self._per_node:
                raise StartupError(
                    f"cluster.workers: {self._per_node} workers need a GPU each, node {node.host} has {node.gpus} "
                    f"(engine.device: {device}); 0 workers are one for each GPU, and engine.device: cpu uses none"
                )
            if (count := self.workers_of(node)) and 0 < count <= self._vllm.workers:
                raise StartupError(
                    f"vllm.workers: {self._vllm.workers} of {count} workers of node {node.host} leaves none for our engine "
                    "(engine.type = mixed)"
                )

    def workers_of(self, node: RayNode) -> int:
        """The number of workers that the node gets: `cluster.workers`, or one for each of its GPUs where that is 0 or more
        than it has. Where workers use no GPU, 0 stands for one.
        """
        if not self._on_gpus:
            return self._per_node or 1
        return min(self._per_node or node.gpus, node.gpus)

    def vllm_workers_of(self, node: RayNode) -> int:
        """How many of them run vLLM."""
        if self._engine != "mixed":
            return self.workers_of(node) if self._engine == "vllm" else 0
        return min(self._vllm.workers or node.vllm_workers, self.workers_of(node))

    def members_of(self, node: RayNode) -> list[MemberSpec]:
        """New members for a node, none if it gets no worker."""
        count = self.workers_of(node)
        if not count:
            return []
        theirs = self.vllm_workers_of(node)
        ours = count - theirs
        # Of the host store's memory, vLLM takes a part with a KV connector only.
        parts = ours + theirs if "kv_transfer_config" in self._vllm.args else ours
        host_store = functools.partial(HostStoreMember, workers=max(parts, 1))
        members = [MemberSpec(f"host-store-{next(self._host_stores)}", host_store, self._context, node.node_id)]
        kinds: list[Callable[..., Member]] = [*[WorkerMember] * ours, *[VllmHost] * theirs]
        for worker, number in zip(kinds, self._workers, strict=False):  # in this order, which takes no number too many
            name = f"{WORKER_PREFIX}{number}"
            make = functools.partial(worker, worker_id=name)
            # The standby has no model loaded, and is kept for members without which nothing goes on.
            members.append(MemberSpec(name, make, self._context, node.node_id, float(self._on_gpus), on_standby=False))
        return members if self._gateways is None else members + self._gateways.of_node(node)

    def left(self, names: Collection[str]) -> None:
        """Members of these names run no longer, since their node has left."""
        if self._gateways is not None:
            self._gateways.left(names)
