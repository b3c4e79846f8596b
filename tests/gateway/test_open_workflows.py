"""Open workflows: their leases, their bound, their tool calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.workflow.step_graph import StepGraph, StepNode
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows


class RunningStep:
    """A step, as far as its workflow knows it."""

    def cancel(self) -> None:
        raise AssertionError("leases cancel no step")


def workflow(name: str, clock: ManualClock, lease_s: float = 10.0) -> OpenWorkflow:
    return OpenWorkflow(name, "", "", lease_s, clock.wall(), clock.now())


@given(st.lists(st.tuples(st.sampled_from(["start", "call", "end", "wait"]), st.integers(0, 4)), max_size=60))
def test_exactly_the_silent_workflows_are_found(actions: list[tuple[str, int]]) -> None:
    clock = ManualClock()
    workflows = OpenWorkflows(clock, max_workflows=100, max_graph_bytes=0)
    renewed: dict[str, float] = {}
    for action, number in actions:
        name = str(number)
        match action:
            case "start" if name not in renewed:
                workflows.add(workflow(name, clock, lease_s=5.0 + number))
                renewed[name] = clock.now()
            case "call":
                if workflows.get(name) is not None:
                    renewed[name] = clock.now()
            case "end" if (found := workflows.get(name)) is not None:
                workflows.remove(found)
                del renewed[name]
            case "wait":
                clock.advance(number)
        silent, busy = workflows.expired()
        assert not busy
        assert {each.id for each in silent} == {
            each for each, renewed_at in renewed.items() if renewed_at + 5.0 + int(each) <= clock.now()
        }
        for each in silent:
            workflows.remove(each)
            del renewed[each.id]
        assert len(workflows) == len(renewed)


def test_a_workflow_that_runs_a_step_is_not_silent() -> None:
    clock = ManualClock()
    workflows = OpenWorkflows(clock, 1, 0)
    busy = workflow("busy", clock)
    workflows.add(busy)
    step = RunningStep()
    busy.running.add(step)
    clock.advance(100.0)
    assert workflows.expired() == ([], [busy])
    busy.running.discard(step)
    clock.advance(9.0)
    assert workflows.expired() == ([], [])
    clock.advance(1.0)
    assert workflows.expired() == ([busy], [])


@pytest.mark.parametrize("runs", [False, True])
def test_a_lease_too_short_for_the_clock_is_found_once_at_a_time(runs: bool) -> None:
    clock = ManualClock(1000.0)
    workflows = OpenWorkflows(clock, 1, 0)
    brief = workflow("brief", clock, lease_s=1e-300)
    workflows.add(brief)
    if runs:
        brief.running.add(RunningStep())
    for _ in range(2):
        assert workflows.expired() == (([], [brief]) if runs else ([brief], []))


def test_workflows_are_bounded_and_ended_ones_leave_nothing_behind() -> None:
    clock = ManualClock()
    workflows = OpenWorkflows(clock, 1, 0)
    for number in range(1000):
        each = workflow(str(number), clock, lease_s=1e6)
        workflows.add(each)
        with pytest.raises(ResourceExhausted):
            workflows.add(workflow("more", clock))
        workflows.remove(each)
    assert workflows.lease_entries < 100


def test_a_repeated_tool_report_is_recognised() -> None:
    clock = ManualClock()
    workflows = OpenWorkflows(clock, 2, 0)
    each, other = workflow("w", clock), workflow("other", clock)
    workflows.add(each)
    workflows.add(other)
    new = [workflows.note_tool_call(each, "t", "", started) for started in (True, True, False, False, True)]
    assert new == [True, False, True, False, True]
    assert workflows.note_tool_call(each, "t", "another call", True)
    assert workflows.note_tool_call(other, "t", "", True)
    workflows.remove(each)
    workflows.add(again := workflow("w", clock))
    assert workflows.note_tool_call(again, "t", "", True), "a workflow of the same id is another one"


def test_step_graphs_are_bounded_together_and_freed_with_their_workflows() -> None:
    clock = ManualClock()
    graph = StepGraph((StepNode("x" * 40), StepNode("y" * 40, ("x" * 40,))))
    assert graph.size_bytes == 120
    workflows = OpenWorkflows(clock, 100, 250)
    opened = [workflow(str(number), clock) for number in range(3)]
    for each in opened:
        each.step_graph = graph
    workflows.add(opened[0])
    workflows.add(opened[1])
    with pytest.raises(ResourceExhausted, match=r"gateway\.max_graph_bytes"):
        workflows.add(opened[2])
    workflows.add(workflow("without", clock))
    workflows.remove(opened[0])
    assert opened[0].step_graph is None
    workflows.add(opened[2])
