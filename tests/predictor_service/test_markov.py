"""The online Markov predictor: hand-computed cases, and what must hold for any history."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecast import Forecast
from pbkv_cluster.predictor_service.base import PREDICTORS, Predictor
from pbkv_cluster.predictor_service.markov import MarkovPredictor
from pbkv_cluster.predictor_service.state_file import StateRefused, write_state
from pbkv_cluster.predictor_service.transitions import NAMED_AGENTS, ROW_LIMIT

EPS = 0.1


def markov(max_agents: int = 2048, horizon: int = 3) -> MarkovPredictor:
    return MarkovPredictor(PredictorConfig(smoothing=EPS, horizon=horizon), max_agents)


def events(workflow: str, agents: Iterable[str], *, workload: str = "app", ends: bool = True) -> list[WorkflowEvent]:
    """A workflow's events: start, one step for each of `agents`, and the end."""
    kinds = [(EventKind.WORKFLOW_STARTED, ""), *((EventKind.STEP_STARTED, agent) for agent in agents)]
    if ends:
        kinds.append((EventKind.WORKFLOW_ENDED, ""))
    return [WorkflowEvent(kind, workflow, at, float(at), workload, agent) for at, (kind, agent) in enumerate(kinds)]


def feed(predictor: Predictor, *histories: list[WorkflowEvent]) -> None:
    for history in histories:
        for event in history:
            predictor.observe(event)


def one(predictor: Predictor, workflow: str) -> Forecast:
    (forecast,) = predictor.forecast([workflow], 7, 3.5)
    return forecast


def test_first_steps_follow_the_smoothed_counts() -> None:
    predictor = markov()
    # From a: b twice, c once. From b and c: the end. Four classes: a, b, c, end.
    feed(predictor, events("1", "ab"), events("2", "ab"), events("3", "ac"), events("w", "a", ends=False))
    forecast = one(predictor, "w")
    assert (forecast.workflow, forecast.epoch, forecast.made_at, forecast.ended) == ("w", 7, 3.5, False)
    end = EPS / (3 + 4 * EPS)
    first = forecast.steps[0]
    assert first.survival == pytest.approx(1 - end)
    assert first.agents["b"] == pytest.approx((2 + EPS) / (3 + 4 * EPS) / (1 - end))
    assert first.agents["c"] == pytest.approx((1 + EPS) / (3 + 4 * EPS) / (1 - end))
    assert first.agents["a"] == pytest.approx(EPS / (3 + 4 * EPS) / (1 - end))


def test_second_step_chains_the_matrix_with_an_absorbing_end() -> None:
    predictor = markov()
    feed(predictor, events("1", "ab"), events("2", "ab"), events("w", "a", ends=False))
    # Classes end, a, b. Row a: b twice. Row b: the end twice.
    z = 2 + 3 * EPS
    to_a, to_b = EPS / z, (2 + EPS) / z
    mass_a = to_a * (EPS / z) + to_b * (EPS / z)
    mass_b = to_a * ((2 + EPS) / z) + to_b * (EPS / z)
    second = one(predictor, "w").steps[1]
    assert second.survival == pytest.approx(mass_a + mass_b)
    assert second.agents == pytest.approx({"a": mass_a / (mass_a + mass_b), "b": mass_b / (mass_a + mass_b)})


def test_the_start_is_a_state() -> None:
    predictor = markov()
    feed(predictor, events("1", "ab"), events("2", "ab"), events("w", "", ends=False))
    first = one(predictor, "w").steps[0]
    assert first.survival == pytest.approx(1 - EPS / (2 + 3 * EPS))
    assert first.agents["a"] == pytest.approx((2 + EPS) / (2 + 2 * EPS))


def test_predictability_by_hand() -> None:
    predictor = markov()
    feed(predictor, events("1", "a"))
    # Start to a once, a to the end once; two classes. Each row is (1 + ε, ε) / (1 + 2ε), and the marginal is even.
    p = (1 + EPS) / (1 + 2 * EPS)
    conditional = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert one(predictor, "new").predictability == pytest.approx(1 - conditional / math.log(2))


def test_predictability_tells_a_fixed_order_from_chance() -> None:
    fixed, random = markov(), markov()
    for i in range(200):
        feed(fixed, events(f"f{i}", "abcd"))
        feed(random, events(f"r{i}", [f"{(i * 7919 + k * k * 104729) % 101 % 4}" for k in range(5)]))
    assert one(fixed, "w").predictability > 0.9
    assert one(random, "w").predictability < one(fixed, "w").predictability


def test_nothing_known_is_said_so() -> None:
    for forecast in markov().forecast(["x", "y"], 1, 0.0):
        assert [(dict(step.agents), step.survival) for step in forecast.steps] == [({}, 1.0)] * 3
        assert forecast.predictability == 0.0


def test_a_young_workload_backs_off_to_all_until_it_knows_enough() -> None:
    predictor = markov()
    for i in range(50):
        feed(predictor, events(f"old{i}", "ab", workload="old"))
    feed(predictor, events("w", "a", workload="young", ends=False))
    assert one(predictor, "w").steps[0].agents["b"] > 0.9
    for i in range(4):
        feed(predictor, events(f"young{i}", "ac", workload="young"))
    assert one(predictor, "w").steps[0].agents["c"] > 0.9
    assert "b" not in one(predictor, "w").steps[0].agents


def test_nothing_is_learnt_across_a_gap() -> None:
    whole, broken = markov(), markov()
    history = events("1", "abc")
    feed(whole, history)
    feed(broken, [event for event in history if event.agent != "b"])
    feed(broken, events("w", "a", ends=False))
    feed(whole, events("w", "a", ends=False))
    uniform = one(broken, "w").steps[0].agents
    assert uniform["c"] == pytest.approx(uniform["a"])
    assert one(whole, "w").steps[0].agents["b"] > 0.5


def test_learning_goes_on_behind_a_gap() -> None:
    predictor = markov()
    feed(predictor, [event for event in events("1", "abcd") if event.agent != "b"])
    feed(predictor, events("w", "c", ends=False))
    assert one(predictor, "w").steps[0].agents["d"] > 0.7


def test_a_workflow_first_heard_in_its_middle() -> None:
    predictor = markov()
    feed(predictor, events("1", "ab"))
    before = predictor.dump()
    predictor.observe(WorkflowEvent(EventKind.TOOL_STARTED, "w", 5, 0.0, "app", tool="grep"))
    assert one(predictor, "w").steps[0].agents == {}
    predictor.observe(WorkflowEvent(EventKind.STEP_FINISHED, "w", 6, 0.0, "app", "a"))
    assert one(predictor, "w").steps[0].agents["b"] > 0.8
    assert predictor.dump() == before


def test_other_events_change_no_forecast() -> None:
    predictor = markov()
    feed(predictor, events("1", "ab"), events("w", "a", ends=False))
    before = one(predictor, "w")
    predictor.observe(WorkflowEvent(EventKind.STEP_FINISHED, "w", 2, 0.0, "app", "a"))
    predictor.observe(WorkflowEvent(EventKind.TOOL_STARTED, "w", 3, 0.0, "app", tool="grep"))
    assert one(predictor, "w") == before


def test_recent_behaviour_outweighs_old() -> None:
    predictor = markov()
    for i in range(3 * ROW_LIMIT):
        feed(predictor, events(f"x{i}", "ab"))
    for i in range(ROW_LIMIT):
        feed(predictor, events(f"y{i}", "ac"))
    feed(predictor, events("w", "a", ends=False))
    agents = one(predictor, "w").steps[0].agents
    assert agents["c"] > agents["b"]
    restored = markov()
    restored.restore(predictor.dump())  # derives its sums from the counts alone
    assert one(restored, "x").predictability == pytest.approx(one(predictor, "x").predictability)


def test_the_number_of_agents_is_bounded() -> None:
    predictor = markov(max_agents=20)
    for i in range(200):
        feed(predictor, events(f"w{i}", [f"agent-{i}", "stays"], workload=f"app-{i % 7}"))
    state = json.loads(predictor.dump())
    assert len(state["all"]["agents"]) <= 20
    assert sum(len(table["agents"]) for table in state["workloads"].values()) <= 20
    at = state["all"]["agents"].index("stays") + 1
    assert [at, 0, 200.0] in state["all"]["transitions"]
    feed(predictor, events("last", ["agent-199"], workload="app-3", ends=False))
    assert one(predictor, "last").steps[0].agents["stays"] > 0.5


def test_a_workflow_whose_agent_left_the_table() -> None:
    predictor = markov(max_agents=8)
    feed(predictor, events("w", ["gone"], ends=False), *[events(f"{i}", [f"agent-{i}"]) for i in range(20)])
    first = one(predictor, "w").steps[0]
    agents = first.agents
    assert first.survival == pytest.approx(1 - 1 / (len(agents) + 1))
    assert "gone" not in agents
    assert list(agents.values()) == pytest.approx([1 / len(agents)] * len(agents))
    before = json.loads(predictor.dump())["all"]["transitions"]
    predictor.observe(WorkflowEvent(EventKind.STEP_STARTED, "w", 2, 0.0, "app", "agent-19"))
    assert json.loads(predictor.dump())["all"]["transitions"] == before


def test_the_workload_that_was_longest_unused_leaves() -> None:
    predictor = markov(max_agents=9)
    feed(predictor, events("1", "abc", workload="first"), events("2", "def", workload="second"))
    feed(predictor, events("3", "abc", workload="first"), events("4", "ghi", workload="third"))
    assert list(json.loads(predictor.dump())["workloads"]) == ["first", "third"]
    small = markov(max_agents=4)
    small.restore(predictor.dump())
    assert list(json.loads(small.dump())["workloads"]) == ["third"]


def test_the_likeliest_agents_are_named_when_there_are_many() -> None:
    predictor = markov()
    for i in range(100):
        feed(predictor, events(f"w{i}", ["hub", f"rare-{i}", "hub", "often"]))
    feed(predictor, events("w", ["hub"], ends=False))
    first = one(predictor, "w").steps[0]
    assert len(first.agents) == NAMED_AGENTS
    assert max(first.agents, key=first.agents.__getitem__) == "often"
    assert 0.0 < sum(first.agents.values()) < 1.0


histories = st.lists(
    st.tuples(st.sampled_from(["app", "other", ""]), st.lists(st.sampled_from("abcde"), max_size=6), st.booleans()), max_size=12
)


def play(history: list[tuple[str, list[str], bool]]) -> list[WorkflowEvent]:
    return [
        event
        for at, (workload, agents, ends) in enumerate(history)
        for event in events(f"w{at}", agents, workload=workload, ends=ends)
    ]


@given(histories, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_forecasts_are_distributions(history: list[tuple[str, list[str], bool]], horizon: int) -> None:
    predictor = markov(horizon=horizon)
    feed(predictor, play(history))
    for forecast in predictor.forecast([f"w{at}" for at in range(len(history))], 1, 0.0):
        assert len(forecast.steps) == horizon
        assert 0.0 <= forecast.predictability <= 1.0
        alive = 1.0
        for step in forecast.steps:
            assert 0.0 < step.survival <= alive + 1e-12
            alive = step.survival
            assert not step.agents or sum(step.agents.values()) == pytest.approx(1.0)
            assert all(p >= 0.0 for p in step.agents.values())
            assert "" not in step.agents


@given(histories)
@settings(max_examples=50, deadline=None)
def test_equal_events_give_equal_forecasts_and_a_batch_equals_its_parts(history: list[tuple[str, list[str], bool]]) -> None:
    first, second = markov(), markov()
    names = [f"w{at}" for at in range(len(history))]
    for event in play(history):
        first.observe(event)
        second.observe(event)
        second.forecast(names, 1, 0.0)  # asking leaves no trace
    batch = first.forecast(names, 1, 0.0)
    assert batch == second.forecast(names, 1, 0.0)
    for forecast, name in zip(batch, names, strict=True):
        (alone,) = first.forecast([name], 1, 0.0)
        assert alone.predictability == forecast.predictability
        for mine, theirs in zip(alone.steps, forecast.steps, strict=True):
            assert mine.agents == pytest.approx(theirs.agents)
            assert mine.survival == pytest.approx(theirs.survival)


@given(histories, st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_no_look_ahead(history: list[tuple[str, list[str], bool]], agents: list[str], cut: int) -> None:
    """What a workflow does after the forecast cannot have changed it."""
    past = play(history) + events("w", agents[:cut], ends=False)
    future = events("w", agents)[1 + len(agents[:cut]) :]
    through, stopped = markov(), markov()
    feed(through, past)
    seen = one(through, "w")
    feed(through, future)
    feed(stopped, past)
    assert seen == one(stopped, "w")


@given(histories)
@settings(max_examples=30, deadline=None)
def test_a_restored_predictor_goes_on_as_the_saved_one(history: list[tuple[str, list[str], bool]]) -> None:
    saved, restored = markov(), markov()
    feed(saved, play(history))
    restored.restore(saved.dump())
    assert json.loads(restored.dump()) == json.loads(saved.dump())
    for predictor in (saved, restored):
        feed(predictor, events("later", "abz"), events("w", "a", workload="app", ends=False))
    mine, theirs = one(saved, "w"), one(restored, "w")
    assert mine.predictability == pytest.approx(theirs.predictability)
    for left, right in zip(mine.steps, theirs.steps, strict=True):
        assert left.agents == pytest.approx(right.agents)
        assert left.survival == pytest.approx(right.survival)


def test_save_and_load(tmp_path: Path) -> None:
    predictor, loaded = markov(), markov()
    feed(predictor, events("1", "ab"), events("2", "ac"))
    predictor.save(tmp_path / "deep" / "state")
    loaded.load(tmp_path / "deep" / "state")
    assert loaded.dump() == predictor.dump()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["state"]
    predictor.save(tmp_path / "deep" / "state")


def test_a_larger_state_is_cut_to_the_limit() -> None:
    large, small = markov(), markov(max_agents=10)
    feed(large, events("1", [f"agent-{i}" for i in range(50)]))
    small.restore(large.dump())
    assert json.loads(small.dump())["all"]["agents"] == [f"agent-{i}" for i in range(40, 50)]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    predictor = markov()
    feed(predictor, events("1", "ab"))
    before = predictor.dump()
    path = tmp_path / "state"
    predictor.save(path)
    good = path.read_bytes()
    cases = {
        "not a predictor's state": [b"", b"\x00\xff" * 100, b"[1]\n", b'{"format": "other"}\n' + before],
        "damaged": [good[:-1], good[:-3] + b"9" + good[-2:]],
    }
    for message, contents in cases.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(StateRefused, match=message):
                predictor.load(path)
    write_state(path, "network", 1, before)
    with pytest.raises(StateRefused, match="'network', not of 'markov'"):
        predictor.load(path)
    write_state(path, "markov", 99, before)
    with pytest.raises(StateRefused, match="version 99"):
        predictor.load(path)
    assert predictor.dump() == before
    with pytest.raises(FileNotFoundError):
        predictor.load(tmp_path / "none")


TABLE = {"agents": ["a"], "transitions": [[0, 1, 1.0]]}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"\xff", "does not fit"),
        (b"[]", "must hold"),
        (json.dumps({"workloads": {}}).encode(), "must hold"),
        (json.dumps({"all": [], "workloads": {}}).encode(), "agents and transitions"),
        (json.dumps({"all": {**TABLE, "agents": ["a", "a"]}, "workloads": {}}).encode(), "distinct"),
        (json.dumps({"all": {**TABLE, "agents": [3]}, "workloads": {}}).encode(), "distinct"),
        (json.dumps({"all": TABLE, "workloads": {"x": {**TABLE, "transitions": [[0, 2, 1]]}}}).encode(), "does not name"),
        (json.dumps({"all": {**TABLE, "transitions": [[0, 1]]}, "workloads": {}}).encode(), "not a transition"),
        (json.dumps({"all": {**TABLE, "transitions": [[0, 1, -1]]}, "workloads": {}}).encode(), "impossible count"),
        (json.dumps({"all": {**TABLE, "transitions": [[0, 1, math.nan]]}, "workloads": {}}).encode(), "impossible count"),
    ],
)
def test_a_state_of_the_wrong_shape_is_refused(state: bytes, message: str) -> None:
    predictor = markov()
    feed(predictor, events("1", "ab"))
    before = predictor.dump()
    with pytest.raises(StateRefused, match=message):
        predictor.restore(state)
    assert predictor.dump() == before


def test_forget_learns_no_end() -> None:
    predictor = markov()
    feed(predictor, events("w", "a", ends=False))
    before = predictor.dump()
    predictor.forget("w")
    predictor.forget("never heard of")
    assert predictor.dump() == before
    assert one(predictor, "w").steps == one(predictor, "another").steps


def test_models_are_found_by_name() -> None:
    config = PredictorConfig()
    assert isinstance(PREDICTORS.get("markov")(config), MarkovPredictor)
    assert isinstance(PREDICTORS.get("pbkv_cluster.predictor_service.markov:MarkovPredictor")(config), MarkovPredictor)
    with pytest.raises(InvalidArgument, match=r"predictor\.model: .*markov"):
        PREDICTORS.get("oracle-of-delphi")
