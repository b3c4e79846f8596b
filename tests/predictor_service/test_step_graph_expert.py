"""The expert that follows a declared step graph: small graphs, computed by hand."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.predictor_service.experts import TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.experts.step_graph import StepGraphExpert
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.workflow.situation import END, Situation

CHAIN = StepGraph((StepNode("a"), StepNode("b", ("a",)), StepNode("c", ("b",))))
BRANCH = StepGraph((StepNode("a"), StepNode("b", ("a",)), StepNode("c", ("a",))))
DIAMOND = StepGraph((StepNode("s"), StepNode("a", ("s",)), StepNode("b", ("s",)), StepNode("j", ("a", "b"))))
LOOP = StepGraph((StepNode("a"), StepNode("b", ("a", "c"), Join.OR), StepNode("c", ("b",))))


def walk(graph: StepGraph, agents: Iterable[str]) -> GraphWalk:
    at = GraphWalk.of(graph)
    for agent in agents:
        at = at.after(agent)
    return at


def situation(graph: StepGraph | None, agents: str, finished: bool = False) -> Situation:
    return Situation(
        agents=tuple(agents),
        step=len(agents),
        finished=finished,
        graph=graph,
        walk=None if graph is None else walk(graph, agents),
    )


def expert_for(names: str, horizon: int = 3) -> StepGraphExpert:
    labels = Labels(64)
    labels.declare(names, {})
    return StepGraphExpert(PredictorConfig(horizon=horizon), labels)


def forecast(expert: StepGraphExpert, graph: StepGraph | None, agents: str) -> list[dict[str, float]]:
    (rows,) = expert.forecast([expert.features(situation(graph, agents))])
    return [dict(zip(expert.labels.names, map(float, row), strict=True)) for row in rows]


def teach(expert: StepGraphExpert, graph: StepGraph, agents: str, times: int = 1) -> None:
    """Whole workflows, each followed by its end."""
    names = expert.labels
    for _ in range(times):
        for at in range(len(agents) + 1):
            column = names.column(agents[at]) if at < len(agents) else 0
            expert.learn([TrainingExample(expert.features(situation(graph, agents[:at])), (column, -1, -1))])


def test_positions_in_a_chain() -> None:
    assert walk(CHAIN, "").enabled() == {"a": 1.0}
    assert walk(CHAIN, "a").enabled() == {"b": 1.0}
    assert walk(CHAIN, "abc").enabled() == {}


def test_and_waits_for_all_and_or_for_any() -> None:
    assert walk(DIAMOND, "s").enabled() == {"a": 1.0, "b": 1.0}
    assert walk(DIAMOND, "sa").enabled() == {"b": 1.0}
    assert walk(DIAMOND, "sab").enabled() == walk(DIAMOND, "sba").enabled() == {"j": 1.0}
    either = StepGraph((*DIAMOND.nodes[:3], StepNode("j", ("a", "b"), Join.OR)))
    assert walk(either, "sa").enabled() == {"b": pytest.approx(0.2), "j": 1.0}


def test_branches_that_meet_later_are_a_fork() -> None:
    graph = StepGraph(
        (StepNode("s"), StepNode("a", ("s",)), StepNode("b", ("s",)), StepNode("x", ("a",)), StepNode("j", ("x", "b")))
    )
    assert walk(graph, "sa").enabled() == {"b": 1.0, "x": 1.0}
    assert walk(graph, "sax").enabled() == {"b": 1.0}


def test_loops() -> None:
    assert walk(LOOP, "a").enabled() == {"b": 1.0}
    assert walk(LOOP, "ab").enabled() == {"c": 1.0}
    assert walk(LOOP, "abcbc").enabled() == {"b": 1.0}
    myself = StepGraph((StepNode("a"), StepNode("b", ("a", "b"), Join.OR)))
    assert walk(myself, "abb").enabled() == {"b": 1.0}
    circle = StepGraph((StepNode("a", ("b",)), StepNode("b", ("a",))))
    assert walk(circle, "").enabled() == {"a": 1.0, "b": 1.0}


def test_an_and_join_does_not_wait_for_what_only_it_leads_to() -> None:
    graph = StepGraph((StepNode("a"), StepNode("b", ("a", "c")), StepNode("c", ("b",))))  # AND by default
    assert walk(graph, "a").enabled() == {"b": 1.0}
    assert walk(graph, "abc").enabled() == {"b": 1.0}


def test_unknown_agents_change_nothing() -> None:
    assert walk(CHAIN, "a?") == walk(CHAIN, "a")
    assert hash(walk(CHAIN, "a?")) == hash(walk(CHAIN, "a"))
    assert walk(CHAIN, "a") != walk(CHAIN, "ab")


def test_a_chain_is_followed_from_the_first_workflow_on() -> None:
    first, second, third = forecast(expert_for("abc"), CHAIN, "a")
    assert first["b"] > 0.8
    assert second["c"] > 0.7
    assert third[END] > 0.7
    assert first["c"] < first["b"]


def test_one_step_by_hand() -> None:
    expert = expert_for("abc")
    teach(expert, CHAIN, "abc", times=2)
    # After a: b twice. Enabled: b (weight 1) and the end (0.1). The graph allowed all eight steps, so 0.5 / 18 is the rest.
    allowed = (2 + 1 / 1.1) / 3
    wrong = 0.5 / 18
    first = forecast(expert, CHAIN, "a")[0]
    assert first["b"] == pytest.approx((1 - wrong) * allowed + wrong * (2 + 1 / 4) / 3)
    assert first[END] == pytest.approx((1 - wrong) * (0.1 / 1.1) / 3 + wrong * (1 / 4) / 3)
    assert first["a"] == first["c"] == pytest.approx(wrong * (1 / 4) / 3)


def test_the_shares_of_branches_are_learnt() -> None:
    expert = expert_for("abc")
    even = forecast(expert, BRANCH, "a")[0]
    assert even["b"] == pytest.approx(even["c"])
    for at in range(100):
        teach(expert, BRANCH, "ac" if at % 5 == 0 else "ab")
    learnt = forecast(expert, BRANCH, "a")
    assert learnt[0]["b"] == pytest.approx(0.8, abs=0.01)
    assert learnt[0]["c"] == pytest.approx(0.2, abs=0.01)
    assert learnt[1][END] > 0.98


def test_one_branch_of_a_diamond_is_followed_by_the_other_and_then_the_join() -> None:
    expert = expert_for("sabj")
    for agents in ("sabj", "sbaj") * 10:
        teach(expert, DIAMOND, agents)
    first, second, third = forecast(expert, DIAMOND, "sa")
    # A first-order model would find b and the join equally likely: each followed a as often as the other.
    assert first["b"] > 0.97
    assert second["j"] > 0.95
    assert third[END] > 0.95


def test_loops_are_left_as_often_as_before() -> None:
    expert = expert_for("abc")
    for _ in range(30):
        teach(expert, LOOP, "abcbc")
    first = forecast(expert, LOOP, "abc")[0]
    assert first["b"] == pytest.approx(0.5, abs=0.03)
    assert first[END] == pytest.approx(0.5, abs=0.03)


def test_agents_that_were_not_declared_are_unlikely_until_they_run() -> None:
    expert = expert_for("abcx")
    before = forecast(expert, CHAIN, "a")[0]["x"]
    assert 0 < before < 0.02
    teach(expert, CHAIN, "axbc", times=20)
    first = forecast(expert, CHAIN, "a")[0]
    assert first["x"] > 10 * before
    assert forecast(expert, CHAIN, "ax")[0]["b"] > 0.8  # b may still run


def test_it_abstains_without_a_graph() -> None:
    expert = expert_for("abc")
    assert not expert.forecast([expert.features(situation(None, "a"))]).any()
    expert.learn([TrainingExample(expert.features(situation(None, "a")), (1, -1, -1))])
    assert not expert.dump()["counts"].any()


def test_outputs_teach_nothing_new() -> None:
    expert = expert_for("abc")
    expert.learn([TrainingExample(expert.features(situation(CHAIN, "a", finished=True)), (2, -1, -1))])
    assert not expert.dump()["counts"].any()


def test_counts_follow_their_columns() -> None:
    expert = expert_for("abcd")
    teach(expert, BRANCH, "ac", times=9)
    expert.labels = labels = Labels(64)
    labels.declare("acb", {})
    expert.renumber([0, 1, 3, 2])
    assert forecast(expert, BRANCH, "a")[0]["c"] > 0.8


def test_a_restored_expert_forecasts_the_same_and_a_foreign_state_is_refused() -> None:
    expert, other = expert_for("abc"), expert_for("abc")
    teach(expert, BRANCH, "ac", times=9)
    other.restore(expert.dump())
    assert forecast(other, BRANCH, "a") == forecast(expert, BRANCH, "a")
    before = forecast(other, BRANCH, "a")
    good = expert.dump()
    for bad in (
        {},
        {**good, "wrong": -1.0},
        {**good, "wrong": 1e9},
        {**good, "counts": np.zeros((2, 2))},
        {**good, "checked": "1"},
    ):
        with pytest.raises(ValueError, match="fit"):
            other.restore(bad)
    assert forecast(other, BRANCH, "a") == before


AGENTS = "abcdefgh"


@st.composite
def graphs(draw: st.DrawFn) -> StepGraph:
    agents = AGENTS[: draw(st.integers(1, len(AGENTS)))]
    return StepGraph(
        tuple(
            StepNode(agent, tuple(draw(st.sets(st.sampled_from(agents), max_size=4))), draw(st.sampled_from(Join)))
            for agent in agents
        )
    )


@settings(deadline=None)
@given(graph=graphs(), runs=st.lists(st.text(AGENTS + "?", max_size=8), max_size=4), now=st.text(AGENTS + "?", max_size=8))
def test_forecasts_are_distributions_whatever_runs(graph: StepGraph, runs: list[str], now: str) -> None:
    expert = expert_for(AGENTS + "?")
    for run in runs:
        teach(expert, graph, run)
    (rows,) = expert.forecast([expert.features(situation(graph, now))])
    assert rows.sum(axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
    assert (rows > 0).all()
    assert (np.diff(rows[:, 0]) > -1e-6).all()  # a workflow that has ended stays ended


def test_a_graph_of_the_largest_size_is_forecast() -> None:
    agents = [f"agent-{at}" for at in range(256)]
    graph = StepGraph(tuple(StepNode(agent, tuple(agents[max(0, at - 16) : at]), Join.OR) for at, agent in enumerate(agents)))
    labels = Labels(1024)
    labels.declare(agents, {})
    expert = StepGraphExpert(PredictorConfig(), labels)
    (rows,) = expert.forecast([expert.features(Situation(agents=("agent-9",), step=1, walk=walk(graph, agents[:10])))])
    assert rows.sum(axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
