"""What becomes of nodes that join, are drained, come back or are lost. Ray and the members are scripted, the clock too."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pbkv_cluster.cluster.frame.actors import MemberSpec
from pbkv_cluster.cluster.frame.ray_nodes import RayNode
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.nodes.node import Node
from pbkv_cluster.cluster.nodes.node_follower import NodeFollower, Surroundings
from pbkv_cluster.cluster.nodes.node_plan import NodePlan
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import NodeRequest, NodeStateEntry

DRAIN_S = 100.0


class Script:
    """Two nodes with one worker each, which serve."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.living = [RayNode("n0", "10.0.0.1", 0), RayNode("n1", "10.0.0.2", 0)]
        self.draining: dict[str, float] = {}
        self.requests: list[NodeRequest] = []
        self.steps = 0
        self.fails = False  # the question for running steps
        self.up: dict[str, bool] = {}
        self.stopped: list[str] = []
        self.said: list[str] = []
        self.shown: dict[str, NodeStateEntry] = {}
        around = Surroundings(
            living=lambda: list(self.living),
            draining=lambda: dict(self.draining),
            stop_members=self.stopped.extend,
            running_steps=self.running_steps,
            now=lambda: self.now,
        )
        plan = NodePlan(MemberContext(load().config, "redis://127.0.0.1:1/0", "", ""), self.living)
        nodes = []
        for ray_node in self.living:
            specs = plan.members_of(ray_node)
            nodes.append(Node.placed(ray_node, specs))
            self.add(specs)
        supervisor: Any = self
        requests: Any = self
        self.follower = NodeFollower(plan, supervisor, nodes, DRAIN_S, requests, self.show, self.said.append, around)
        self.serve()

    def add(self, specs: list[MemberSpec]) -> None:
        self.up |= {spec.name: False for spec in specs}

    def remove(self, names: list[str]) -> list[str]:
        return [name for name in names if self.up.pop(name, None) is not None]

    def entries(self) -> list[Any]:
        return [SimpleNamespace(name=name, up=up) for name, up in self.up.items()]

    def addresses(self) -> dict[str, str]:
        return dict.fromkeys(self.up, "127.0.0.1:1")

    def running_steps(self, addresses: list[str]) -> int:
        if self.fails:
            raise Unavailable("a worker does not answer")
        return self.steps

    def read(self) -> list[NodeRequest]:
        return list(self.requests)

    def withdraw(self, obeyed: Sequence[NodeRequest]) -> None:
        self.requests = [each for each in self.requests if each not in obeyed]

    def show(self, entries: Sequence[NodeStateEntry]) -> None:
        self.shown = {entry.node_id: entry for entry in entries}

    def serve(self) -> None:
        """All members have started."""
        self.up = dict.fromkeys(self.up, True)
        self.poll()

    def poll(self, after_s: float = 0.0) -> dict[str, str]:
        """The states of all nodes after one more comparison."""
        self.now += after_s
        self.follower.poll()
        return {node_id: str(entry.state) for node_id, entry in self.shown.items()}


@pytest.fixture
def script() -> Script:
    return Script()


def test_members_start_on_a_node_that_joins(script: Script) -> None:
    assert script.poll() == {"n0": "serving", "n1": "serving"}
    script.living.append(RayNode("n2", "10.0.0.3", 0))
    assert script.poll() == {"n0": "serving", "n1": "serving", "n2": "starting"}
    assert {name for name, up in script.up.items() if not up} == {"host-store-2", "worker-2"}
    script.serve()
    assert script.poll()["n2"] == "serving"
    assert script.said == ["node 10.0.0.3 (n2) has joined: host-store-2, worker-2"]


def test_a_lost_node_is_off_the_books_and_its_members_are_not_restarted(script: Script) -> None:
    script.living.pop()
    assert script.poll() == {"n0": "serving"}
    assert script.stopped == ["host-store-1", "worker-1"]
    assert {*script.up} == {"host-store-0", "worker-0"}
    assert script.said == ["node 10.0.0.2 (n1) is lost, and with it host-store-1, worker-1"]


def test_a_drained_node_keeps_its_members_until_gateways_have_heard_and_its_steps_have_ended(script: Script) -> None:
    script.requests = [NodeRequest("n1", drain=True, reason="new memory")]
    assert script.poll() == {"n0": "serving", "n1": "draining"}
    assert script.shown["n1"].reason == "new memory"
    script.poll(after_s=1.0)
    assert script.stopped == [], "a gateway may have placed a step there just now"
    script.steps = 1
    script.poll(after_s=10.0)
    assert script.stopped == []
    script.steps = 0
    assert script.poll(after_s=1.0) == {"n0": "serving", "n1": "drained"}
    assert script.stopped == ["host-store-1", "worker-1"]
    assert script.poll()["n1"] == "drained", "nothing starts there by itself"
    script.living.pop()
    assert script.poll() == {"n0": "serving"}
    assert script.said[-1] == "node 10.0.0.2 (n1) has left"


def test_a_request_outlives_a_comparison_that_fails(script: Script) -> None:
    script.requests = [NodeRequest("n0", drain=True)]
    script.poll()
    script.requests.append(NodeRequest("n1", drain=True))
    script.fails = True
    with pytest.raises(Unavailable):
        script.poll(after_s=10.0)
    script.fails = False
    assert script.poll() == {"n0": "drained", "n1": "draining"}
    assert script.requests == []


def test_steps_that_take_too_long_go_on_elsewhere(script: Script) -> None:
    script.steps = 1
    script.requests = [NodeRequest("n1", drain=True)]
    script.poll()
    assert script.poll(after_s=DRAIN_S - 1.0)["n1"] == "draining"
    assert script.poll(after_s=1.0)["n1"] == "drained"


def test_a_node_that_ray_drains_is_left_before_ray_ends_it(script: Script) -> None:
    script.steps = 1
    script.draining = {"n1": 30.0}
    assert script.poll()["n1"] == "draining"
    assert script.poll(after_s=24.0)["n1"] == "draining"
    assert script.poll(after_s=1.0)["n1"] == "drained"
    script.requests = [NodeRequest("n1", drain=False)]
    assert script.poll()["n1"] == "drained", "Ray ends it in any case"


def test_ray_may_leave_the_time_of_the_end_open(script: Script) -> None:
    script.steps = 1
    script.draining = {"n1": math.inf}
    script.poll()
    assert script.poll(after_s=DRAIN_S - 1.0)["n1"] == "draining"
    assert script.poll(after_s=1.0)["n1"] == "drained"


def test_nothing_starts_on_a_node_that_ray_drains(script: Script) -> None:
    script.living.append(RayNode("n2", "10.0.0.3", 0))
    script.draining = {"n2": 30.0}
    assert "n2" not in script.poll()


def test_a_drain_can_be_taken_back(script: Script) -> None:
    script.steps = 1
    script.requests = [NodeRequest("n1", drain=True)]
    script.poll()
    script.requests = [NodeRequest("n1", drain=False)]
    assert script.poll() == {"n0": "serving", "n1": "serving"}
    assert script.stopped == []


def test_a_drained_node_can_serve_again(script: Script) -> None:
    script.requests = [NodeRequest("n1", drain=True)]
    script.poll()
    assert script.poll(after_s=10.0)["n1"] == "drained"
    script.requests = [NodeRequest("n1", drain=False)]
    script.poll()
    assert script.poll()["n1"] == "starting"
    script.serve()
    assert script.poll()["n1"] == "serving"
    assert {*script.up} == {"host-store-0", "worker-0", "host-store-2", "worker-2"}
