"""Step graphs: malformed ones are refused with the field, and steps to each agent are the fewest that the joins allow."""

import math
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.step_graph import MAX_NODES, Join, StepGraph, StepNode

NAMES = tuple("abcdefg")


def graphs() -> st.SearchStrategy[StepGraph]:
    """Graphs of up to seven agents, with loops."""

    def build(names: list[str]) -> st.SearchStrategy[StepGraph]:
        before = st.lists(st.sampled_from(names), unique=True, max_size=4).map(tuple)
        nodes = [st.builds(StepNode, st.just(name), before, st.sampled_from(Join)) for name in names]
        return st.tuples(*nodes).map(StepGraph)

    return st.lists(st.sampled_from(NAMES), min_size=1, unique=True).flatmap(build)


def relaxed(graph: StepGraph, current: Collection[str]) -> dict[str, int]:
    """The definition: recompute every value from those of its predecessors until none changes."""
    values = {node.agent: math.inf for node in graph.nodes}
    while True:
        news = dict(values)
        for node in graph.nodes:
            before = [0.0 if agent in current else values[agent] for agent in node.predecessors]
            if before:
                news[node.agent] = 1 + (max(before) if node.join is Join.AND else min(before))
        if news == values:
            return {agent: int(value) for agent, value in values.items() if value < math.inf}
        values = news


DIAMOND = StepGraph(
    (
        StepNode("plan"),
        StepNode("search", ("plan",)),
        StepNode("read", ("search",)),
        StepNode("code", ("plan",)),
        StepNode("write", ("read", "code"), Join.AND),
        StepNode("glance", ("read", "code"), Join.OR),
    )
)
LOOP = StepGraph(
    (StepNode("plan"), StepNode("code", ("plan", "test"), Join.OR), StepNode("test", ("code",)), StepNode("report", ("test",)))
)


def test_an_and_join_waits_for_all_and_an_or_join_for_any() -> None:
    assert DIAMOND.steps_to_execution(["plan"]) == {"search": 1, "code": 1, "read": 2, "write": 3, "glance": 2}
    assert DIAMOND.steps_to_execution(["code", "search"]) == {"read": 1, "write": 2, "glance": 1}
    assert DIAMOND.steps_to_execution(["code"]) == {"glance": 1}, "the other branch does not run"


def test_agents_run_again_in_loops() -> None:
    assert LOOP.steps_to_execution(["code"]) == {"test": 1, "code": 2, "report": 2}
    assert LOOP.steps_to_execution(["report"]) == {}
    alone = StepGraph((StepNode("a", ("a",)),))
    assert alone.steps_to_execution(["a"]) == {"a": 1}
    assert alone.steps_to_execution(["stranger"]) == {}


@given(graph=graphs(), current=st.sets(st.sampled_from([*NAMES, "stranger"])))
def test_steps_agree_with_the_definition(graph: StepGraph, current: set[str]) -> None:
    assert graph.steps_to_execution(current) == relaxed(graph, current)


def walk(graph: StepGraph, *agents: str) -> set[str]:
    current: frozenset[str] = frozenset()
    for agent in agents:
        current = graph.advance(current, agent)
    return set(current)


def test_current_agents_after_each_step() -> None:
    assert walk(LOOP, "plan") == {"plan"}
    assert walk(LOOP, "plan", "code", "test", "code") == {"code"}
    assert walk(LOOP, "plan", "code", "code") == {"code"}, "a step that begins again is where it was"
    assert walk(LOOP, "plan", "stranger", "code") == {"code"}, "an agent that the graph does not know moves nothing"
    assert walk(StepGraph((StepNode("a", ("a",)),)), "a", "a") == {"a"}


def test_branches_of_an_and_join_stay_current_when_they_run_one_after_the_other() -> None:
    fan = (StepNode("plan"), StepNode("left", ("plan",)), StepNode("right", ("plan",)))
    both = StepGraph((*fan, StepNode("join", ("left", "right"), Join.AND)))
    either = StepGraph((*fan, StepNode("join", ("left", "right"), Join.OR)))
    assert walk(both, "plan", "left") == {"plan", "left"}
    assert both.steps_to_execution(walk(both, "plan", "left")) == {"left": 1, "right": 1, "join": 2}
    assert walk(both, "plan", "left", "right") == {"left", "right"}
    assert walk(both, "plan", "left", "right", "join") == {"join"}
    assert walk(either, "plan", "left") == {"left"}, "a choice has been made"
    assert walk(either, "plan", "left", "join") == {"join"}


@given(graph=graphs(), agents=st.lists(st.sampled_from([*NAMES, "stranger"]), max_size=20))
def test_the_agent_that_ran_last_is_always_current(graph: StepGraph, agents: list[str]) -> None:
    known = {node.agent for node in graph.nodes}
    current: frozenset[str] = frozenset()
    for agent in agents:
        before, current = current, graph.advance(current, agent)
        assert current <= (before | {agent}) & known
        assert agent in current or agent not in known


@pytest.mark.parametrize(
    ("nodes", "field", "problem"),
    [
        ((), "step_graph.nodes", "from 1 to 256 agents, got 0"),
        (tuple(StepNode(str(n)) for n in range(MAX_NODES + 1)), "step_graph.nodes", "from 1 to 256 agents, got 257"),
        ((StepNode("a"), StepNode("")), "step_graph.nodes[1].agent_id", "must not be empty"),
        ((StepNode("a"), StepNode("b"), StepNode("a")), "step_graph.nodes[2].agent_id", "'a' is there already"),
        ((StepNode("a"), StepNode("b", ("a", "c"))), "step_graph.nodes[1].predecessors", "'c' is no agent of the graph"),
        ((StepNode("a", ("a", "a")),), "step_graph.nodes[0].predecessors", "names an agent twice"),
        ((StepNode("a", "a"),), "step_graph.nodes[0].predecessors", "must be a tuple of agents, got 'a'"),  # type: ignore[arg-type]
        (
            (StepNode("é" * 20_000), StepNode("b", ("é" * 20_000,))),
            "step_graph",
            "its names may have 65536 bytes in all, got 80001",
        ),
        (
            tuple(StepNode(str(n), tuple(str(m) for m in range(128))) for n in range(128)),
            "step_graph.nodes.predecessors",
            "at most 4096 in all, got 16384",
        ),
    ],
)
def test_nodes_that_are_not_a_graph_are_refused_with_the_field(nodes: tuple[StepNode, ...], field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        StepGraph(nodes)
    assert caught.value.field == field
    assert caught.value.problem.startswith(problem)
