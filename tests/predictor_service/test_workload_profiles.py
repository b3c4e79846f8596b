"""Workloads told apart by agents and prompts."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from pbkv_cluster.predictor_service.workload.evidence import STEPS, StepEvidence, evidence_of
from pbkv_cluster.predictor_service.workload.profiles import WorkflowEvidence, WorkloadProfiles
from tests.predictor_service.applications import application, task


def steps(app: str, agents: Sequence[str], number: int) -> list[StepEvidence]:
    pieces = application(app) + task(f"{app} {number}")
    return [evidence_of(at, agent, "", pieces) for at, agent in enumerate(agents)]


def best_of(profiles: WorkloadProfiles, steps: Sequence[StepEvidence]) -> str:
    evidence = WorkflowEvidence()
    for step in steps:
        profiles.add_step(evidence, step)
    return profiles.best(evidence)


def taught(count: int = 10) -> WorkloadProfiles:
    profiles = WorkloadProfiles()
    for number in range(count):
        profiles.learn("one", steps("one", ["assistant"] * 3, number))
        profiles.learn("two", steps("two", ["assistant"] * 3, number))
        profiles.learn("team", steps("team", ["planner", "coder", "tester"], number))
    return profiles


def test_single_agents_of_one_name_are_told_apart_by_their_prompts() -> None:
    profiles = taught()
    for number in range(100, 120):
        assert best_of(profiles, steps("one", ["assistant"], number)) == "one"
        assert best_of(profiles, steps("two", ["assistant"], number)) == "two"
        assert best_of(profiles, steps("three", ["assistant"], number)) == ""
        assert best_of(profiles, steps("team", ["planner"], number)) == "team"


def test_agents_tell_where_prompts_do_not() -> None:
    profiles = WorkloadProfiles()
    for _ in range(10):
        profiles.learn("chat", [StepEvidence(0, "user", ()), StepEvidence(1, "bot", ())])
        profiles.learn("code", [StepEvidence(0, "planner", ()), StepEvidence(1, "coder", ())])
    assert best_of(profiles, [StepEvidence(0, "user", ())]) == "chat"
    assert best_of(profiles, [StepEvidence(0, "coder", ())]) == "code"  # although it was never first
    assert best_of(profiles, [StepEvidence(0, "nobody", ())]) == ""


def test_the_second_workflow_of_a_workload_is_recognised() -> None:
    profiles = taught(1)
    assert best_of(profiles, steps("one", ["assistant"], 9)) == "one"


def test_what_a_framework_writes_into_every_prompt_tells_nothing() -> None:
    profiles = WorkloadProfiles()
    framework = application("framework")
    for number in range(10):
        for app in "abcdef":
            pieces = framework + application(app) + task(f"{app} {number}")
            profiles.learn(app, [evidence_of(0, "assistant", "", pieces)])
    for app in "abcdef":
        assert best_of(profiles, [evidence_of(0, "assistant", "", framework + application(app) + task("x"))]) == app
    assert best_of(profiles, [evidence_of(0, "assistant", "", framework + application("new") + task("x"))]) == ""


def test_a_workflow_is_recognised_by_later_steps() -> None:
    evidence = [step._replace(position=-1) for step in steps("two", ["assistant"], 77)]
    assert best_of(taught(), evidence) == "two"
    assert evidence_of(STEPS, "a", "", ()).position == -1


def test_invented_agents_with_a_common_role_are_one_workload() -> None:
    profiles = taught()
    for number in range(10):
        profiles.learn("captain", [evidence_of(0, f"Field{number}_Expert", "", task(str(number)))])
    assert best_of(profiles, [evidence_of(0, "Weather_Expert", "", task("x"))]) == "captain"


def test_a_call_site_counts() -> None:
    profiles = WorkloadProfiles()
    for _ in range(10):
        profiles.learn("x", [evidence_of(0, "a", "here.py:1", ())])
        profiles.learn("y", [evidence_of(0, "a", "there.py:1", ())])
    assert best_of(profiles, [evidence_of(0, "a", "there.py:1", ())]) == "y"


def test_renamed_and_forgotten() -> None:
    profiles = taught()
    profiles.rename("one", "first")
    profiles.forget("two")
    profiles.forget("never known")
    assert best_of(profiles, steps("one", ["assistant"], 50)) == "first"
    assert best_of(profiles, steps("two", ["assistant"], 50)) == ""
    assert len(profiles) == 2
    assert "first" in profiles


def test_a_workload_that_is_learnt_meanwhile_is_considered() -> None:
    profiles, evidence = WorkloadProfiles(), WorkflowEvidence()
    first, second, _ = steps("one", ["assistant"] * 3, 1)
    profiles.add_step(evidence, first)
    assert profiles.best(evidence) == ""
    profiles.learn("one", steps("one", ["assistant"] * 3, 2))
    profiles.add_step(evidence, second)
    assert profiles.best(evidence) == "one"
    profiles.forget("one")
    assert profiles.best(evidence) == ""


def test_saved_and_restored() -> None:
    profiles = taught()
    again = WorkloadProfiles.restore(profiles.dump())
    assert again.dump() == profiles.dump()
    for app in ("one", "two", "three"):
        evidence, other = WorkflowEvidence(), WorkflowEvidence()
        for step in steps(app, ["assistant"] * 3, 50):
            profiles.add_step(evidence, step)
            again.add_step(other, step)
        assert profiles.best(evidence) == again.best(other)


@pytest.mark.parametrize("field", ["workflows", "steps", "features", "agents", "all_agents"])
def test_damage_is_refused(field: str) -> None:
    damage: list[Any] = [None, "x", -1.0, [[]], {"a": "b"}]
    for bad in damage:
        state = taught(1).dump()
        state["one"][field] = bad
        with pytest.raises(ValueError, match=r"fit|other steps"):
            WorkloadProfiles.restore(state)


def test_memory_is_bounded() -> None:
    profiles = WorkloadProfiles()
    for number in range(3000):
        pieces = tuple(random.Random(number).sample(range(1 << 32), 128))
        profiles.learn("w", [evidence_of(at, f"agent-{number}", "", pieces + application("w")) for at in range(STEPS)])
    profile = profiles.dump()["w"]
    assert all(len(table) < 128 * 700 for table in profile["features"])
    assert len(profile["all_agents"]) <= 1024
    assert profile["workflows"] <= 1025
    assert best_of(profiles, [evidence_of(0, "agent-new", "", application("w") + task("x"))]) == "w"
