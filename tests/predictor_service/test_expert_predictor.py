"""The predictor of many experts: single workflows, and properties of all of them."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph, StepNode
from pbkv_cluster.predictor_service.experts.mixture import Phase
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.predictor_service.predictor.agent_forecasts import MAX_AGENTS
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.predictor.prediction_state import PredictionState
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.state.file import StateRefused
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel

EXPERTS = ["markov", "context-tree", "step-graph"]
DIAMOND = StepGraph((StepNode("s"), StepNode("a", ("s",)), StepNode("b", ("s",)), StepNode("j", ("a", "b"))))


def make(
    *, experts: Sequence[str] = EXPERTS, max_agents: int = 64, max_workloads: int = 64, horizon: int = 3
) -> ExpertPredictor:
    return ExpertPredictor(PredictorConfig(max_agents=max_agents, horizon=horizon), experts, max_workloads)


def events(
    name: str, agents: Iterable[str], *, workload: str = "app", ends: bool = True, graph: StepGraph | None = None
) -> list[WorkflowEvent]:
    found = [WorkflowEvent(EventKind.WORKFLOW_STARTED, name, 0, 0.0, workload, graph=graph)]
    for step, agent in enumerate(agents):
        for kind in (EventKind.STEP_STARTED, EventKind.STEP_FINISHED):
            found.append(WorkflowEvent(kind, name, len(found), 0.0, workload, agent, step=step))
    if ends:
        found.append(WorkflowEvent(EventKind.WORKFLOW_ENDED, name, len(found), 0.0, workload))
    return found


def feed(predictor: ExpertPredictor, stream: Iterable[WorkflowEvent]) -> None:
    for event in stream:
        predictor.observe(event)
        predictor.learn()


def one(predictor: ExpertPredictor, workflow: str) -> Forecast:
    (forecast,) = predictor.forecast([workflow], 7, 3.5)
    return forecast


def shape(forecast: Forecast) -> list[tuple[dict[str, float], float]]:
    return [(dict(step.agents), step.survival) for step in forecast.steps]


def model_of(predictor: ExpertPredictor, workload: str = "app") -> WorkloadModel:
    found = predictor.workloads.get(workload)
    assert found is not None
    return found.model


def state_of(predictor: ExpertPredictor, workflow: str) -> PredictionState:
    state = predictor.state_of(workflow)
    assert state is not None
    return state


def taught(workflows: int = 20) -> ExpertPredictor:
    predictor = make()
    for number in range(workflows):
        feed(predictor, events(f"w{number}", "abc"))
    return predictor


def test_the_order_of_agents_is_learnt() -> None:
    predictor = taught()
    feed(predictor, events("now", "a", ends=False))
    forecast = one(predictor, "now")
    assert (forecast.workflow, forecast.epoch, forecast.made_at, forecast.ended, forecast.step) == ("now", 7, 3.5, False, 0)
    assert forecast.steps[0].agents["b"] > 0.9
    assert forecast.steps[1].agents["c"] > 0.9
    assert forecast.steps[0].survival > 0.9 > 0.2 > forecast.steps[2].survival
    assert forecast.predictability > 0.5


def test_a_workflow_that_was_never_observed_is_unknown() -> None:
    (forecast,) = taught().forecast(["never"], 1, 0.0)
    assert shape(forecast) == [({}, 1.0)] * 3
    assert forecast.step == -1
    assert forecast.predictability == 0.0


def test_forecasts_keep_the_order_they_were_asked_in() -> None:
    predictor = taught()
    feed(predictor, [*events("x", "a", ends=False), *events("y", "ab", workload="other", ends=False)])
    found = predictor.forecast(["y", "nobody", "x"], 1, 0.0)
    assert [forecast.workflow for forecast in found] == ["y", "nobody", "x"]
    assert shape(found[2]) == shape(one(predictor, "x"))


def saved(predictor: ExpertPredictor) -> str:
    """What is saved, without how far open workflows have been learnt from."""
    state = encoding.from_bytes(predictor.dump())
    return repr({name: each for name, each in state.items() if name != "learnt"})


def test_forgotten_workflows_teach_no_end() -> None:
    predictor = make()
    feed(predictor, events("w", "ab", ends=False))
    before = saved(predictor)
    predictor.forget("w")
    predictor.forget("never")
    assert saved(predictor) == before
    assert shape(one(predictor, "w")) == [({}, 1.0)] * 3


def test_nothing_is_learnt_across_a_gap() -> None:
    predictor, cut = make(), make()
    stream = events("w", "abcd")
    feed(predictor, [*stream[:3], *stream[5:]])  # b is lost
    for half in (stream[:3], stream[5:]):
        feed(cut, half)
        cut.forget("w")
    model = model_of(predictor)
    counts = model.experts[0].dump()["counts"]
    a, c = (model.labels.column(label) for label in ("#0", "#1"))
    assert model.labels.names[1:] == ["#0", "#1", "#2"]
    assert counts[a, c] == 0


def test_steps_side_by_side_are_one_sequence() -> None:
    predictor = make()

    def step(kind: EventKind, sequence: int, number: int, agent: str) -> WorkflowEvent:
        return WorkflowEvent(kind, "w", sequence, 0.0, "app", agent, step=number, words=(number,))

    started, finished = EventKind.STEP_STARTED, EventKind.STEP_FINISHED
    feed(predictor, [events("w", "")[0], step(started, 1, 0, "a"), step(started, 2, 1, "b")])
    moments = [len(each) for each in state_of(predictor, "w").moments]
    feed(predictor, [step(finished, 3, 0, "a")])  # of an older step: the latest still runs
    assert [len(each) for each in state_of(predictor, "w").moments] == moments
    assert state_of(predictor, "w").moments[-1][-1].phase is Phase.BEFORE_OUTPUT
    feed(predictor, [step(finished, 4, 1, "b"), step(finished, 5, 1, "b")])
    assert [len(each) for each in state_of(predictor, "w").moments] == [*moments[:-1], 2]
    assert state_of(predictor, "w").moments[-1][-1].phase is Phase.AFTER_OUTPUT
    assert one(predictor, "w").step == 1


def test_events_before_any_step_do_no_harm() -> None:
    predictor = make()
    for kind in EventKind:
        predictor.observe(WorkflowEvent(kind, f"only {kind}", 5, 0.0, "app", "a", step=0))
        assert len(one(predictor, f"only {kind}").steps) == 3


def test_a_workflow_whose_workload_changes_starts_over() -> None:
    predictor = taught()
    for number in range(20):
        feed(predictor, events(f"v{number}", "ax", workload="other"))
    feed(predictor, events("now", "a", ends=False))
    assert max(one(predictor, "now").steps[0].agents.items(), key=lambda item: item[1])[0] == "b"
    begun = events("now", "aa", workload="other", ends=False)[3:]
    feed(predictor, begun)
    assert max(one(predictor, "now").steps[0].agents.items(), key=lambda item: item[1])[0] == "x"
    assert list(state_of(predictor, "now").progress.agents) == ["a"]


def test_the_longest_unused_workload_leaves() -> None:
    predictor = make(max_workloads=3)
    for name in ("one", "two", "three", "one", "four"):
        feed(predictor, events(f"w-{name}", "ab", workload=name))
    assert predictor.workloads.names == ["three", "one", "four"]


def test_a_declared_graph_is_followed_in_the_first_workflow_of_all() -> None:
    predictor = make()
    feed(predictor, events("w", "sa", ends=False, graph=DIAMOND))
    steps = one(predictor, "w").steps
    assert max(steps[0].agents.items(), key=lambda item: item[1])[0] == "b"
    assert max(steps[1].agents.items(), key=lambda item: item[1])[0] == "j"
    predictor = make()
    for event in events("w", "sa", workload="", ends=False, graph=DIAMOND):
        predictor.observe(event)
    assert shape(one(predictor, "w")) == [({}, 1.0)] * 3  # the workload is unknown yet


def test_agents_that_only_this_workflow_has_are_named() -> None:
    predictor = make()
    for number in range(30):
        feed(predictor, events(f"w{number}", [f"plan-{number}", f"act-{number}"] * 3))
    feed(predictor, events("now", ["plan-x", "act-x", "plan-x"], ends=False))
    assert one(predictor, "now").steps[0].agents["act-x"] > 0.8
    assert not any(name.startswith("#") for name in one(predictor, "now").steps[0].agents)


def test_the_agents_named_are_bounded() -> None:
    predictor = make(max_agents=200)
    for number in range(4):
        feed(predictor, events(f"w{number}", [f"agent-{at}" for at in range(100)]))
    feed(predictor, events("now", ["agent-0"], ends=False))
    step = one(predictor, "now").steps[0]
    assert len(step.agents) <= MAX_AGENTS
    assert step.agents["agent-1"] > 0.3


def test_thousands_of_agents_stay_in_bounded_memory() -> None:
    predictor, draws = make(max_agents=64), random.Random(1)
    for number in range(250):
        feed(predictor, events(f"w{number}", [f"agent-{draws.randrange(5000)}" for _ in range(8)]))
        if number % 50 == 0:
            feed(predictor, events("now", ["agent-1", f"agent-{number}"], ends=False))
            for step in one(predictor, "now").steps:
                assert 0 <= sum(step.agents.values()) <= 1 + 1e-4
                assert 0 < step.survival <= 1
            predictor.forget("now")
    model = model_of(predictor)
    assert len(model.labels) <= 65
    assert model.labels.unshared_agents <= 4 * 64
    assert len(predictor.dump()) < 4 << 20


def test_new_agents_replace_old_ones_while_it_runs() -> None:
    predictor = make(max_agents=16)
    for number in range(60):
        feed(predictor, events(f"x{number}", "abc"))
        feed(predictor, events(f"y{number}", [f"n{number // 3}", f"m{number // 3}"]))
    feed(predictor, events("now", "a", ends=False))
    assert one(predictor, "now").steps[0].agents["b"] > 0.8
    assert len(model_of(predictor).labels) <= 17


STREAM = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdefghijkl"), st.integers(0, 9)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=40)
@given(steps=STREAM, named=st.booleans(), graph=st.booleans())
def test_forecasts_are_distributions_and_follow_from_events_alone(
    steps: list[tuple[int, str, int]], named: bool, graph: bool
) -> None:
    runs = [make(max_agents=8), make(max_agents=8)]
    sequences: dict[str, int] = {}
    for number, agent, draw in steps:
        name = f"w{number}"
        sequence = sequences.get(name, -1) + 1 + (draw == 0)
        kind = [EventKind.WORKFLOW_ENDED, EventKind.WORKFLOW_STARTED, EventKind.STEP_FINISHED, EventKind.STEP_STARTED][
            min(draw, 3)
        ]
        event = WorkflowEvent(kind, name, sequence, 0.0, "app" if named else "", agent, step=sequence)
        sequences[name] = sequence
        if kind is EventKind.WORKFLOW_STARTED and graph:
            event = replace(event, agent="", graph=DIAMOND)
        found = []
        for predictor in runs:
            predictor.observe(event)
            found.append(list(predictor.forecast(sorted(sequences), 0, 0.0)))
            predictor.learn()
        assert found[0] == found[1]
        for forecast in found[0]:
            for step in forecast.steps:
                assert sum(step.agents.values()) <= 1 + 1e-4
                assert all(probability >= 0 for probability in step.agents.values())
                assert 0 < step.survival <= 1
    assert runs[0].dump() == runs[1].dump()


@settings(deadline=None, max_examples=25)
@given(
    agents=st.text("abcd", min_size=2, max_size=10),
    cut=st.integers(1, 9),
    other=st.text("abcd", max_size=4),
    named=st.booleans(),
)
def test_a_forecast_does_not_depend_on_later_events(agents: str, cut: int, other: str, named: bool) -> None:
    workload = "app" if named else ""
    cut = min(cut, len(agents))
    found = []
    for whole in (agents, agents[:cut] + other):
        predictor = make()
        for number in range(6):
            feed(predictor, events(f"w{number}", "abcdab"[number % 3 :], workload=workload))
        seen = []
        for event in events("now", whole, workload=workload)[: 2 * cut + 1]:
            feed(predictor, [event])
            seen.append(shape(one(predictor, "now")))
        found.append(seen)
    assert found[0] == found[1]


def test_saved_and_restored() -> None:
    predictor, again = taught(), make()
    again.restore(predictor.dump())
    assert again.dump() == predictor.dump()
    for each in (predictor, again):
        feed(each, events("now", "ab", ends=False))
    for mine, other in zip(one(predictor, "now").steps, one(again, "now").steps, strict=True):
        assert other.survival == pytest.approx(mine.survival, abs=1e-6)
        assert other.agents == pytest.approx(mine.agents, abs=1e-6)


def test_foreign_and_damaged_states_are_refused_and_change_nothing() -> None:
    predictor = taught()
    before = predictor.dump()
    good = encoding.from_bytes(before)
    app = good["workloads"]["app"]
    damaged = [
        make(experts=["markov"]).dump(),
        make(horizon=2).dump(),
        b"",
        before[: len(before) // 2],
        encoding.to_bytes({**good, "workloads": []}),
        encoding.to_bytes({**good, "workloads": {"app": 1}}),
        *(encoding.to_bytes({**good, "workloads": {"app": {**app, part: {}}}}) for part in app),
        *(encoding.to_bytes({**good, "workloads": {"app": {**app, part: None}}}) for part in app),
    ]
    for state in damaged:
        with pytest.raises(StateRefused):
            predictor.restore(state)
    assert predictor.dump() == before


def test_an_unknown_expert_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument):
        make(experts=["markov", "no-such"])


@pytest.mark.parametrize("name", EXPERTS)
def test_every_expert_is_a_predictor_by_itself(name: str) -> None:
    predictor = PREDICTORS.get(name)(PredictorConfig())
    assert isinstance(predictor, ExpertPredictor)
    feed(predictor, events("w", "sab", graph=DIAMOND))
    assert len(one(predictor, "w").steps) == 3


def test_learning_in_parts_gives_the_same() -> None:
    whole, parts = make(), make()
    for number, agents in enumerate(("abcabc", "acbacb", "abcacb", "aab") * 4):
        for event in events(f"w{number}", agents, workload=f"app-{number % 3}"):
            whole.observe(event)
            parts.observe(event)
        if number % 5 == 4:
            whole.learn()
            while parts.learn_some():
                pass
    whole.learn()
    while parts.learn_some():
        pass
    assert not parts.learn_some()
    assert parts.dump() == whole.dump()
