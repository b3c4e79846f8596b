"""Which node gets which gateway, and their ports."""

import pytest

from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.nodes.gateway_plan import GatewayPlan
from pbkv_cluster.cluster.nodes.node_plan import NodePlan
from pbkv_cluster.cluster.startup.gateway_ports import with_free_ports
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import ConfigError

HERE = RayNode("here", "127.0.0.1", 0)
Placed = list[tuple[str, str, int]]


def start(replicas: int, others: int, port: int = 30100) -> tuple[NodePlan, Placed]:
    """A cluster of this node and others: its plan, and name, node and port of each gateway."""
    given = load(flags={"gateway.replicas": replicas, "gateway.port": port, "gateway.http_port": -1}).config
    context = MemberContext(with_free_ports(given, "127.0.0.1"), "redis://127.0.0.1:1/0", "", "")
    gateways = GatewayPlan(context, given, HERE.node_id, "127.0.0.1")
    nodes = [HERE, *(node(number) for number in range(others))]
    plan = NodePlan(context, nodes, gateways)
    specs = gateways.here(others) + [spec for each in nodes for spec in plan.members_of(each)]
    return plan, [
        (spec.name, spec.node_id, spec.context.config.gateway.port) for spec in specs if spec.name.startswith("gateway")
    ]


def node(number: int) -> RayNode:
    return RayNode(f"n{number}", f"10.0.0.{number}", 0)


def gateways_on(plan: NodePlan, number: int) -> list[str]:
    return [spec.name for spec in plan.members_of(node(number)) if spec.name.startswith("gateway")]


@pytest.mark.parametrize(
    ("replicas", "others", "placed"),
    [
        (1, 2, [("gateway", "here", 30100)]),
        (3, 0, [("gateway", "here", 30100), ("gateway-1", "here", 30101), ("gateway-2", "here", 30102)]),
        (2, 2, [("gateway", "here", 30100), ("gateway-1", "n0", 30100)]),
        (3, 1, [("gateway", "here", 30100), ("gateway-1", "here", 30101), ("gateway-2", "n0", 30100)]),
        (0, 2, [("gateway", "here", 30100), ("gateway-1", "n0", 30100), ("gateway-2", "n1", 30100)]),
    ],
)
def test_gateways_are_on_different_nodes_as_far_as_there_are(replicas: int, others: int, placed: Placed) -> None:
    assert start(replicas, others)[1] == placed


def test_where_any_port_will_do_gateways_of_one_node_have_different_ones() -> None:
    ports = [port for _, _, port in start(3, 0, port=0)[1]]
    assert len(set(ports)) == 3
    assert all(ports)


def test_a_node_that_joins_gets_the_gateway_that_another_has_taken_with_it() -> None:
    plan, placed = start(2, 1)
    assert placed[1][1] == "n0"
    assert gateways_on(plan, 1) == []
    plan.left(["host-store-1", "worker-1", "gateway-1"])
    assert gateways_on(plan, 2) == ["gateway-2"], "no name is used twice"
    assert gateways_on(plan, 3) == []


def test_each_node_that_joins_gets_one_where_each_is_to_have_one() -> None:
    plan, _ = start(0, 0)
    assert [gateways_on(plan, number) for number in (1, 2)] == [["gateway-1"], ["gateway-2"]]


def test_ports_that_do_not_suffice_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="port leaves no ports for 3 replicas"):
        load(flags={"gateway.replicas": 3, "gateway.port": 65534})
