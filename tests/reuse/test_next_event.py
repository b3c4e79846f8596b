"""The next-event model against a dictionary of contexts and its recursion, written out."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.reuse.model import next_event
from pbkv_cluster.reuse.model.next_event import END, Event, NextEventModel, contexts

events = st.tuples(st.sampled_from(("planner", "coder", "tester")), st.integers(0, 2))
workflows = st.lists(events, max_size=12)


def logs(workflow: Sequence[Event]) -> list[StepLog]:
    return [StepLog(number, agent, -1, 0, 0.0, symbol=symbol) for number, (agent, symbol) in enumerate(workflow)]


def naive_contexts(before: Sequence[Event]) -> list[Any]:
    """Nothing, the last agent, the last 1, 2, 3, 4, 6 and 8 events (as far as there are so many), and the longest with the
    position."""
    found: list[Any] = ["nothing"]
    if before:
        found.append(("agent", before[-1][0]))
    last: Any = None
    for depth in (1, 2, 3, 4, 6, 8):
        last = tuple(before[-depth:]), len(before) < depth
        found.append((depth, last))
        if len(before) < depth:
            break
    return [*found, ("at", len(before), last)]


def naive(taught: Sequence[Sequence[Event]], before: Sequence[Event]) -> dict[Event, float]:
    counts: dict[Any, Counter[Event]] = defaultdict(Counter)
    for workflow in taught:
        for position, event in enumerate([*workflow, END]):
            for context in naive_contexts(workflow[:position]):
                counts[context][event] += 1
    found: dict[Event, float] = {}
    for context in naive_contexts(before):
        if seen := counts.get(context):
            total = sum(seen.values())
            found = {event: (seen[event] + 4.0 * found.get(event, 0.0)) / (total + 4.0) for event in {*found, *seen}}
    return found


def taught(examples: Sequence[Sequence[Event]]) -> NextEventModel:
    model = NextEventModel()
    for workflow in examples:
        model.learn(logs(workflow))
    return model


@settings(deadline=None)
@given(st.lists(workflows, max_size=6), workflows)
def test_the_distribution_is_that_of_the_recursion(examples: list[list[Event]], before: list[Event]) -> None:
    found = taught(examples).distribution(logs(before))
    assert found == pytest.approx(naive(examples, before), rel=1e-9)
    assert all(chance > 0.0 for chance in found.values())
    assert sum(found.values()) <= 1.0 + 1e-9


@given(workflows, workflows, st.data())
def test_contexts_are_of_what_came_before(steps: list[Event], others: list[Event], data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(steps)))
    before = contexts(logs(steps), stop)
    assert before == contexts(logs(steps[:stop]), stop)
    assert before == contexts(logs(steps[:stop] + others), stop)
    assert len(set(before)) == len(before)


def test_the_end_is_learnt_as_an_event() -> None:
    workflow: list[Event] = [("planner", 0), ("coder", 1), ("coder", 1)]
    model = taught([workflow] * 30)
    assert model.distribution(logs(workflow))[END] > 0.95
    assert model.distribution(logs(workflow[:2]))[END] < 0.05
    assert model.distribution(logs(workflow[:2]))["coder", 1] > 0.9


def test_what_was_longest_unseen_leaves_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_event, "MOST_CONTEXTS", 40)
    model = NextEventModel()
    for number in range(50):
        changed = model.learn(logs([(f"agent-{number}", 0), ("coder", number)]))
        assert len(model) <= 40
        assert changed <= {context for context, _ in model.counts()}, "the newest stays"
    assert model.distribution(logs([("agent-49", 0)]))["coder", 49] > model.distribution(logs([("agent-3", 0)]))["coder", 49]
    other = NextEventModel()
    for number in range(100):
        other.put(number, {END: 1.0})
        assert len(other) <= 40
    assert [context for context, _ in other.counts()] == list(range(60, 100))
