"""What a node gets: a host store and workers, by its GPUs and the configuration."""

import pytest

from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.nodes.node_plan import NodePlan
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import StartupError


def node(number: int, gpus: int = 0) -> RayNode:
    return RayNode(f"node-{number}", f"10.0.0.{number}", gpus)


def plan(*nodes: RayNode, workers: int = 0, device: str = "auto") -> NodePlan:
    flags = {"cluster.workers": workers, "engine.device": device}
    return NodePlan(MemberContext(load(flags=flags).config, "redis://127.0.0.1:1/0", "", ""), nodes)


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "counts"),
    [
        ("auto", 0, (0, 0), (1, 1)),
        ("auto", 2, (0, 0), (2, 2)),
        ("auto", 0, (0, 4), (0, 4)),
        ("auto", 2, (0, 4), (0, 2)),
        ("cuda", 0, (0, 0), (0, 0)),
        ("cpu", 0, (8, 0), (1, 1)),
    ],
)
def test_workers_of_nodes(device: str, workers: int, gpus: tuple[int, int], counts: tuple[int, int]) -> None:
    nodes = [node(number, have) for number, have in enumerate(gpus)]
    found = plan(*nodes, workers=workers, device=device)
    assert tuple(map(found.workers_of, nodes)) == counts
    for each, count in zip(nodes, counts, strict=True):
        members = found.members_of(each)
        assert len(members) == (count + 1 if count else 0), "a host store, and the workers"
        assert {spec.node_id for spec in members} <= {each.node_id}
        assert {spec.gpus for spec in members[1:]} <= {float(device != "cpu" and any(gpus))}


def test_a_node_that_joins_without_a_gpu_has_no_worker_where_others_have_gpus() -> None:
    found = plan(node(0, gpus=1))
    assert found.workers_of(node(1)) == 0
    assert found.workers_of(node(2, gpus=8)) == 8


def test_a_node_of_the_start_with_too_few_gpus_is_refused_and_one_that_joins_has_as_many_as_it_can() -> None:
    with pytest.raises(StartupError, match=r"cluster\.workers: 4 workers need a GPU each, node 10\.0\.0\.1 has 2") as refused:
        plan(node(0, gpus=4), node(1, gpus=2), workers=4)
    assert "0 workers are one for each GPU" in str(refused.value)
    found = plan(node(0, gpus=4), workers=4)
    assert found.workers_of(node(1, gpus=2)) == 2


def test_no_name_is_used_twice() -> None:
    found = plan(node(0), workers=2)
    names = [spec.name for _ in range(3) for spec in found.members_of(node(0))]
    assert names == [
        *("host-store-0", "worker-0", "worker-1"),
        *("host-store-1", "worker-2", "worker-3"),
        *("host-store-2", "worker-4", "worker-5"),
    ]
