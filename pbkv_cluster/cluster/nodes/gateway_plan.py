"""Where the gateways run: on nodes of their own as far as there are, the rest on the node of the process that starts them."""

import itertools
from collections.abc import Collection
from dataclasses import replace

from pbkv_cluster.cluster.frame.actors import MemberSpec
from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.members import GatewayMember
from pbkv_cluster.cluster.startup.gateway_ports import with_free_ports, with_next_ports
from pbkv_cluster.core.config import Config
from pbkv_cluster.rpc.services import gateway_name, is_gateway


class GatewayPlan:
    """Gives each gateway its name, which is never used twice, its node and its ports."""

    def __init__(self, context: MemberContext, given: Config, this_node: str, host: str) -> None:
        """Args:
        context: of the members; its configuration has the ports of the first gateway.
        given: the configuration with its ports as they were given, of which 0 takes any free one.
        this_node: id of the node of the process that starts members. The first gateway is there.
        host: address that gateways on that node bind.
        """
        self._context, self._given, self._this_node, self._host = context, given, this_node, host
        self._wanted = context.config.gateway.replicas  # 0: one on each node
        self._numbers = itertools.count()
        self._present = 0

    def here(self, other_nodes: int) -> list[MemberSpec]:
        """The gateways of this node, of which there is one at least.

        Args:
            other_nodes: that get one each.
        """
        return [self._spec(self._this_node, self._config(at)) for at in range(max(1, self._wanted - other_nodes))]

    def of_node(self, node: RayNode) -> list[MemberSpec]:
        """The gateway of another node, if there are fewer than wanted."""
        if node.node_id == self._this_node or (self._wanted and self._present >= self._wanted):
            return []
        return [self._spec(node.node_id, self._context.config)]

    def left(self, names: Collection[str]) -> None:
        """Members of these names run no longer; the next node that joins gets the gateway that was among them."""
        self._present -= sum(map(is_gateway, names))

    def _config(self, position: int) -> Config:
        if not position:
            return self._context.config
        return with_free_ports(with_next_ports(self._given, position), self._host)

    def _spec(self, node_id: str, config: Config) -> MemberSpec:
        self._present += 1
        return MemberSpec(gateway_name(next(self._numbers)), GatewayMember, replace(self._context, config=config), node_id)
