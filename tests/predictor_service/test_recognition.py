"""The predictor finds the workload of workflows whose clients name none."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.predictor.prediction_state import PredictionState
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.state.file import StateRefused
from tests.predictor_service.applications import application, task


def events(app: str, agents: Sequence[str], number: int, workload: str = "", ends: bool = True) -> list[WorkflowEvent]:
    pieces = application(app) + task(f"{app} {number}")
    found = [WorkflowEvent(EventKind.WORKFLOW_STARTED, f"{app}-{number}", 0, 0.0, workload)]
    for step, agent in enumerate(agents):
        for kind in (EventKind.STEP_STARTED, EventKind.STEP_FINISHED):
            began = kind is EventKind.STEP_STARTED
            event = WorkflowEvent(kind, f"{app}-{number}", len(found), 0.0, workload, agent, step=step)
            found.append(replace(event, pieces=pieces) if began else event)
    if ends:
        found.append(WorkflowEvent(EventKind.WORKFLOW_ENDED, f"{app}-{number}", len(found), 0.0, workload))
    return found


APPS = {"one": ["assistant"] * 3, "two": ["assistant"] * 6, "team": ["planner", "coder", "tester", "coder", "tester"]}


def predictor(max_workloads: int = 64) -> ExpertPredictor:
    return ExpertPredictor(PredictorConfig(), ["context-tree"], max_workloads)


def feed(predictor: ExpertPredictor, stream: Sequence[WorkflowEvent]) -> None:
    for event in stream:
        predictor.observe(event)
        predictor.learn()


def learnt_unnamed(count: int = 12) -> ExpertPredictor:
    made = predictor()
    for number in range(count):
        for app, agents in APPS.items():
            feed(made, events(app, agents, number))
    return made


def end_after_three(made: ExpertPredictor, app: str) -> float:
    feed(made, events(app, ["assistant"] * 3, 900, ends=False))
    (forecast,) = made.forecast([f"{app}-900"], 0, 0.0)
    made.forget(f"{app}-900")
    return 1.0 - forecast.steps[0].survival


def state_of(made: ExpertPredictor, workflow: str) -> PredictionState:
    state = made.state_of(workflow)
    assert state is not None
    return state


def workload_of(made: ExpertPredictor, workflow: str) -> str:
    return state_of(made, workflow).recognition.workload_name


def test_unnamed_applications_get_a_workload_each() -> None:
    made = learnt_unnamed()
    assert len(made.workloads.names) == 3
    assert end_after_three(made, "one") > 0.6
    assert end_after_three(made, "two") < 0.2


def test_learnt_with_names_and_recognised_without() -> None:
    made = predictor()
    for number in range(12):
        for app, agents in APPS.items():
            feed(made, events(app, agents, number, workload=f"the {app}"))
    feed(made, events("team", ["planner"], 500, ends=False))
    assert workload_of(made, "team-500") == "the team"
    (forecast,) = made.forecast(["team-500"], 0, 0.0)
    assert forecast.steps[0].agents["coder"] > 0.9
    assert end_after_three(made, "one") > 0.6
    assert len(made.workloads.names) == 3


def test_an_application_that_is_named_later_keeps_what_was_learnt() -> None:
    made = learnt_unnamed()
    feed(made, events("one", APPS["one"], 700, workload="mine"))
    assert "mine" in made.workloads
    assert len(made.workloads.names) == 3
    assert end_after_three(made, "one") > 0.6
    feed(made, events("one", ["assistant"], 701, ends=False))
    assert workload_of(made, "one-701") == "mine"


def test_a_client_may_name_the_workload_of_an_open_workflow() -> None:
    made = learnt_unnamed()
    stream = events("two", APPS["two"], 700)
    feed(made, stream[:9])
    unnamed = workload_of(made, "two-700")
    assert unnamed in made.workloads.unnamed
    feed(made, [replace(event, workload="mine") for event in stream[9:]])
    assert unnamed not in made.workloads
    assert "mine" in made.workloads
    assert "mine" not in made.workloads.unnamed
    assert len(made.workloads.names) == 3


def test_a_first_guess_is_revised_and_its_steps_are_not_lost() -> None:
    made = learnt_unnamed()
    first, *rest = events("team", APPS["team"], 800)
    other = application("one") + task("one 800")
    feed(made, [first, replace(rest[0], pieces=other, agent="assistant"), replace(rest[1], agent="assistant")])
    guessed = workload_of(made, "team-800")
    feed(made, rest[2:6])
    assert workload_of(made, "team-800") != guessed
    assert list(state_of(made, "team-800").progress.agents)[1:] == ["coder", "tester"]
    assert state_of(made, "team-800").progress.steps == 3


def test_nothing_is_learnt_before_the_workload_is_settled() -> None:
    made = learnt_unnamed()
    before = made.dump()
    stream = events("team", APPS["team"], 800)
    feed(made, stream[:4])
    assert made.workloads.profiles.dump() == learnt_unnamed().workloads.profiles.dump()
    counts = learnt_unnamed()
    counts.restore(before)
    models = [each.experts[0].dump() for each in made.workloads.models()]
    for was, now in zip([each.experts[0].dump() for each in counts.workloads.models()], models, strict=True):
        assert (was["counts"] == now["counts"]).all()


def test_unnamed_workloads_are_bounded_and_named_ones_outlive_them() -> None:
    made = predictor(max_workloads=8)
    for number in range(3):
        feed(made, events("team", APPS["team"], number, workload="kept"))
    for number in range(30):
        feed(made, events(f"app {number}", [f"agent{number}x"] * 3, 0))
    assert len(made.workloads.unnamed) == 4
    assert len(made.workloads.names) == 5
    assert "kept" in made.workloads
    assert {*made.workloads.unnamed, "kept"} == set(made.workloads.names) == set(made.workloads.profiles.dump())


def test_workflows_with_fewer_steps_than_recognition_needs_are_learnt() -> None:
    made = predictor()
    for number in range(10):
        feed(made, events("short", ["only"], number))
    assert len(made.workloads.names) == 1
    feed(made, events("short", ["only"], 50, ends=False))
    (forecast,) = made.forecast(["short-50"], 0, 0.0)
    assert forecast.steps[0].survival < 0.4


def test_a_workflow_without_steps_leaves_nothing() -> None:
    made = predictor()
    feed(made, events("x", [], 0))
    tool = WorkflowEvent(EventKind.TOOL_STARTED, "y", 0, 0.0)
    feed(made, [replace(tool, sequence=at) for at in range(500)])
    assert not made.workloads.names
    assert len(state_of(made, "y").recognition.buffer) < 100


def test_recognition_is_saved() -> None:
    made, again = learnt_unnamed(), predictor()
    again.restore(made.dump())
    assert again.dump() == made.dump()
    assert end_after_three(again, "one") == end_after_three(made, "one") > 0.6
    feed(again, events("new", ["x"] * 3, 0))
    assert len(again.workloads.names) == 4


def test_a_state_with_foreign_profiles_is_refused() -> None:
    good = encoding.from_bytes(learnt_unnamed(2).dump())
    made = learnt_unnamed(1)
    before = made.dump()
    damage: list[dict[str, Any]] = [
        {"recognition": None},
        {"recognition": {"else": {}}},
        {"unnamed": ["else"]},
        {"unnamed": [[]]},
        {"opened": "1"},
    ]
    for bad in damage:
        with pytest.raises(StateRefused):
            made.restore(encoding.to_bytes({**good, **bad}))
    assert made.dump() == before


def test_without_learning_nothing_is_opened() -> None:
    made = learnt_unnamed()
    made.learning = False
    before = made.workloads.profiles.dump()
    feed(made, events("fresh", ["x"] * 5, 0))
    feed(made, events("one", APPS["one"], 300))
    assert len(made.workloads.names) == 3
    assert made.workloads.profiles.dump() == before
