"""What a node gets: a host store and workers, by its GPUs and the configuration."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import pytest

from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.members import HostStoreMember, WorkerMember
from pbkv_cluster.cluster.nodes.node_plan import NodePlan
from pbkv_cluster.cluster.nodes.vllm_host import VllmHost
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import StartupError


def node(number: int, gpus: int = 0, vllm: int = 0) -> RayNode:
    return RayNode(f"node-{number}", f"10.0.0.{number}", gpus, vllm)


def plan(*nodes: RayNode, workers: int = 0, device: str = "auto", more: Mapping[str, Any] | None = None) -> NodePlan:
    flags = {"cluster.workers": workers, "engine.device": device, **(more or {})}
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


CONNECTOR = {"kv_transfer_config": {"kv_connector": "PbkvConnector", "kv_role": "kv_both"}}


def engines(found: NodePlan, of: RayNode) -> tuple[list[str], int]:
    """The names of the node's workers with our engine, then of those with vLLM's; and the parts of its host store."""
    store, *workers = [(spec.name, cast(functools.partial[Any], spec.make)) for spec in found.members_of(of)]
    made = [(name, make.func) for name, make in workers]
    assert store[1].func is HostStoreMember
    return [*(name for name, kind in made if kind is WorkerMember), "|", *(name for name, kind in made if kind is VllmHost)], (
        store[1].keywords["workers"]
    )


def test_some_of_each_nodes_workers_run_vllm() -> None:
    mixed = {"engine.type": "mixed", "vllm.workers": 1}
    found = plan(node(0), node(1), workers=3, more=mixed)
    assert engines(found, node(0)) == (["worker-0", "worker-1", "|", "worker-2"], 2)
    assert engines(found, node(1)) == (["worker-3", "worker-4", "|", "worker-5"], 2)
    found = plan(node(0, gpus=8), more={**mixed, "vllm.args": CONNECTOR})
    names, parts = engines(found, node(0, gpus=8))
    assert (names.index("|"), len(names), parts) == (7, 9, 8), "with a connector, vLLM has a part of the host store, too"
    assert engines(found, node(1, gpus=1)) == (["|", "worker-8"], 1), "a node that joins has as many as it can"
    assert engines(plan(node(0), more={"engine.type": "vllm"}), node(0)) == (["|", "worker-0"], 1)


def test_the_resource_of_a_node_says_how_many_of_its_workers_run_vllm() -> None:
    found = plan(node(0, gpus=2), node(1, gpus=2, vllm=2), more={"engine.type": "mixed", "cluster.address": "10.0.0.9:6379"})
    assert engines(found, node(0, gpus=2)) == (["worker-0", "worker-1", "|"], 2)
    assert engines(found, node(1, gpus=2, vllm=2)) == (["|", "worker-2", "worker-3"], 1)
    assert engines(found, node(2, gpus=4, vllm=1)) == (["worker-4", "worker-5", "worker-6", "|", "worker-7"], 3)
    ours = plan(node(0, vllm=1))
    assert engines(ours, node(0, vllm=1)) == (["worker-0", "|"], 1), "engine.type says pbkv"


def test_a_node_of_the_start_without_a_worker_for_our_engine_is_refused() -> None:
    with pytest.raises(StartupError, match=r"^vllm\.workers: 1 of 1 workers of node 10\.0\.0\.0 leaves none for our engine"):
        plan(node(0), more={"engine.type": "mixed", "vllm.workers": 1})
