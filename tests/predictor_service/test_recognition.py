"""Workloads told apart by agents and prompts, and the predictor that relies on it."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.state import encoding as state_bytes
from pbkv_cluster.predictor_service.state.file import StateRefused
from pbkv_cluster.predictor_service.workload.recognition import STEPS, Evidence, Recognition, Scores, evidence_of

PIECES = 20


def application(name: str) -> tuple[int, ...]:
    """The pieces of its template."""
    return tuple(random.Random(name).sample(range(1 << 32), PIECES))


def task(name: str) -> tuple[int, ...]:
    return tuple(random.Random(f"task {name}").sample(range(1 << 32), PIECES))


def steps(app: str, agents: Sequence[str], number: int) -> list[Evidence]:
    pieces = application(app) + task(f"{app} {number}")
    return [evidence_of(at, agent, "", pieces) for at, agent in enumerate(agents)]


def scored(recognition: Recognition, evidence: Sequence[Evidence]) -> str:
    scores = Scores()
    for step in evidence:
        recognition.seen(scores, step)
    return recognition.best(scores)


def taught(count: int = 10) -> Recognition:
    recognition = Recognition()
    for number in range(count):
        recognition.learn("one", steps("one", ["assistant"] * 3, number))
        recognition.learn("two", steps("two", ["assistant"] * 3, number))
        recognition.learn("team", steps("team", ["planner", "coder", "tester"], number))
    return recognition


def test_single_agents_of_one_name_are_told_apart_by_their_prompts() -> None:
    recognition = taught()
    for number in range(100, 120):
        assert scored(recognition, steps("one", ["assistant"], number)) == "one"
        assert scored(recognition, steps("two", ["assistant"], number)) == "two"
        assert scored(recognition, steps("three", ["assistant"], number)) == ""
        assert scored(recognition, steps("team", ["planner"], number)) == "team"


def test_agents_tell_where_prompts_do_not() -> None:
    recognition = Recognition()
    for _ in range(10):
        recognition.learn("chat", [Evidence(0, "user", ()), Evidence(1, "bot", ())])
        recognition.learn("code", [Evidence(0, "planner", ()), Evidence(1, "coder", ())])
    assert scored(recognition, [Evidence(0, "user", ())]) == "chat"
    assert scored(recognition, [Evidence(0, "coder", ())]) == "code"  # though it was never first
    assert scored(recognition, [Evidence(0, "nobody", ())]) == ""


def test_a_second_workflow_is_recognised() -> None:
    recognition = taught(1)
    assert scored(recognition, steps("one", ["assistant"], 9)) == "one"


def test_what_a_framework_writes_into_every_prompt_makes_nothing_known() -> None:
    recognition = Recognition()
    framework = application("framework")
    for number in range(10):
        for app in "abcdef":
            pieces = framework + application(app) + task(f"{app} {number}")
            recognition.learn(app, [evidence_of(0, "assistant", "", pieces)])
    for app in "abcdef":
        assert scored(recognition, [evidence_of(0, "assistant", "", framework + application(app) + task("x"))]) == app
    assert scored(recognition, [evidence_of(0, "assistant", "", framework + application("new") + task("x"))]) == ""


def test_a_workflow_that_is_met_on_its_way_is_recognised() -> None:
    evidence = [step._replace(position=-1) for step in steps("two", ["assistant"], 77)]
    assert scored(taught(), evidence) == "two"
    assert evidence_of(STEPS, "a", "", ()).position == -1


def test_invented_agents_with_a_common_role_are_one_workload() -> None:
    recognition = taught()
    for number in range(10):
        recognition.learn("captain", [evidence_of(0, f"Field{number}_Expert", "", task(str(number)))])
    assert scored(recognition, [evidence_of(0, "Weather_Expert", "", task("x"))]) == "captain"


def test_a_call_site_counts() -> None:
    recognition = Recognition()
    for _ in range(10):
        recognition.learn("x", [evidence_of(0, "a", "here.py:1", ())])
        recognition.learn("y", [evidence_of(0, "a", "there.py:1", ())])
    assert scored(recognition, [evidence_of(0, "a", "there.py:1", ())]) == "y"


def test_renamed_and_forgotten() -> None:
    recognition = taught()
    recognition.rename("one", "first")
    recognition.forget("two")
    recognition.forget("never known")
    assert scored(recognition, steps("one", ["assistant"], 50)) == "first"
    assert scored(recognition, steps("two", ["assistant"], 50)) == ""
    assert len(recognition) == 2
    assert "first" in recognition


def test_a_workload_that_came_meanwhile_is_considered() -> None:
    recognition, scores = Recognition(), Scores()
    first, second, _ = steps("one", ["assistant"] * 3, 1)
    recognition.seen(scores, first)
    assert recognition.best(scores) == ""
    recognition.learn("one", steps("one", ["assistant"] * 3, 2))
    recognition.seen(scores, second)
    assert recognition.best(scores) == "one"
    recognition.forget("one")
    assert recognition.best(scores) == ""


def test_saved_and_restored() -> None:
    recognition = taught()
    again = Recognition.restore(recognition.dump())
    assert again.dump() == recognition.dump()
    for app in ("one", "two", "three"):
        scores, others = Scores(), Scores()
        for step in steps(app, ["assistant"] * 3, 50):
            recognition.seen(scores, step)
            again.seen(others, step)
        assert recognition.best(scores) == again.best(others)


@pytest.mark.parametrize("field", ["workflows", "steps", "features", "agents", "all_agents"])
def test_damage_is_refused(field: str) -> None:
    damage: list[Any] = [None, "x", -1.0, [[]], {"a": "b"}]
    for bad in damage:
        state = taught(1).dump()
        state["one"][field] = bad
        with pytest.raises(ValueError, match=r"fit|other steps"):
            Recognition.restore(state)


def test_memory_is_bounded() -> None:
    recognition = Recognition()
    for number in range(3000):
        pieces = tuple(random.Random(number).sample(range(1 << 32), 128))
        recognition.learn("w", [evidence_of(at, f"agent-{number}", "", pieces + application("w")) for at in range(STEPS)])
    profile = recognition.dump()["w"]
    assert all(len(table) < 128 * 700 for table in profile["features"])
    assert len(profile["all_agents"]) <= 1024
    assert profile["workflows"] <= 1025
    assert scored(recognition, [evidence_of(0, "agent-new", "", application("w") + task("x"))]) == "w"


# The predictor with it.


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


def predictor(most_workloads: int = 64) -> ExpertPredictor:
    return ExpertPredictor(PredictorConfig(), ["context-tree"], most_workloads)


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


def workload_of(made: ExpertPredictor, workflow: str) -> str:
    return made._tracks[workflow].workload


def test_unnamed_applications_get_a_workload_each() -> None:
    made = learnt_unnamed()
    assert len(made._workloads._models) == 3
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
    assert len(made._workloads._models) == 3


def test_an_application_that_is_named_later_keeps_what_was_learnt() -> None:
    made = learnt_unnamed()
    feed(made, events("one", APPS["one"], 700, workload="mine"))
    assert "mine" in made._workloads._models
    assert len(made._workloads._models) == 3
    assert end_after_three(made, "one") > 0.6
    feed(made, events("one", ["assistant"], 701, ends=False))
    assert workload_of(made, "one-701") == "mine"


def test_an_open_workflow_is_named_on_its_way() -> None:
    made = learnt_unnamed()
    stream = events("two", APPS["two"], 700)
    feed(made, stream[:9])
    unnamed = workload_of(made, "two-700")
    assert unnamed in made._workloads._unnamed
    feed(made, [replace(event, workload="mine") for event in stream[9:]])
    assert unnamed not in made._workloads._models
    assert "mine" in made._workloads._models
    assert "mine" not in made._workloads._unnamed
    assert len(made._workloads._models) == 3


def test_a_first_guess_is_revised_and_its_steps_are_not_lost() -> None:
    made = learnt_unnamed()
    first, *rest = events("team", APPS["team"], 800)
    other = application("one") + task("one 800")
    feed(made, [first, replace(rest[0], pieces=other, agent="assistant"), replace(rest[1], agent="assistant")])
    guessed = workload_of(made, "team-800")
    feed(made, rest[2:6])
    assert workload_of(made, "team-800") != guessed
    assert list(made._tracks["team-800"].agents)[1:] == ["coder", "tester"]
    assert made._tracks["team-800"].steps == 3


def test_nothing_is_learnt_before_the_workload_is_settled() -> None:
    made = learnt_unnamed()
    before = made.dump()
    stream = events("team", APPS["team"], 800)
    feed(made, stream[:4])
    assert made._workloads._recognition.dump() == learnt_unnamed()._workloads._recognition.dump()
    counts = learnt_unnamed()
    counts.restore(before)
    models = [each.experts[0].dump() for each in made._workloads._models.values()]
    for was, now in zip([each.experts[0].dump() for each in counts._workloads._models.values()], models, strict=True):
        assert (was["counts"] == now["counts"]).all()


def test_unnamed_workloads_are_bounded_and_named_ones_outlive_them() -> None:
    made = predictor(most_workloads=8)
    for number in range(3):
        feed(made, events("team", APPS["team"], number, workload="kept"))
    for number in range(30):
        feed(made, events(f"app {number}", [f"agent{number}x"] * 3, 0))
    assert len(made._workloads._unnamed) == 4
    assert len(made._workloads._models) == 5
    assert "kept" in made._workloads._models
    assert set(made._workloads._unnamed) | {"kept"} == set(made._workloads._models) == set(made._workloads._recognition.dump())


def test_workflows_shorter_than_recognition_takes_are_learnt() -> None:
    made = predictor()
    for number in range(10):
        feed(made, events("short", ["only"], number))
    assert len(made._workloads._models) == 1
    feed(made, events("short", ["only"], 50, ends=False))
    (forecast,) = made.forecast(["short-50"], 0, 0.0)
    assert forecast.steps[0].survival < 0.4


def test_a_workflow_without_steps_leaves_nothing() -> None:
    made = predictor()
    feed(made, events("x", [], 0))
    tool = WorkflowEvent(EventKind.TOOL_STARTED, "y", 0, 0.0)
    feed(made, [replace(tool, sequence=at) for at in range(500)])
    assert not made._workloads._models
    assert len(made._tracks["y"].held) < 100


def test_recognition_is_saved() -> None:
    made, again = learnt_unnamed(), predictor()
    again.restore(made.dump())
    assert again.dump() == made.dump()
    assert end_after_three(again, "one") == end_after_three(made, "one") > 0.6
    feed(again, events("new", ["x"] * 3, 0))
    assert len(again._workloads._models) == 4


def test_a_state_with_foreign_recognition_is_refused() -> None:
    good = state_bytes.from_bytes(learnt_unnamed(2).dump())
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
            made.restore(state_bytes.to_bytes({**good, **bad}))
    assert made.dump() == before


def test_without_learning_nothing_is_opened() -> None:
    made = learnt_unnamed()
    made.learning = False
    before = made._workloads._recognition.dump()
    feed(made, events("fresh", ["x"] * 5, 0))
    feed(made, events("one", APPS["one"], 300))
    assert len(made._workloads._models) == 3
    assert made._workloads._recognition.dump() == before
