"""A conversation that becomes known after the steps of its trace were told."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.integrations.otel import collector
from pbkv_cluster.integrations.otel.reading.spans import Span
from pbkv_cluster.integrations.otel.reasons import Reason
from tests.integrations.otel_bench import (
    DONE,
    ENDED,
    PARENT_S,
    REORDER_S,
    SILENCE_S,
    STARTED,
    STEP,
    TOOL,
    TOOL_DONE,
    Bench,
    kinds,
)
from tests.integrations.otel_spans import span

TRACE = f"{5:032x}"
CONVERSATION = "c"


def root(trace: int = 5, start: float = 1, end: float = 9) -> list[Span]:
    return [span(1, start, end, "invoke_agent", trace=trace, agent_name="app", conversation_id=CONVERSATION)]


def of(bench: Bench, workflow: str) -> list[tuple[EventKind, str]]:
    return kinds(event for event in bench.events if event.workflow == workflow)


def test_the_steps_are_told_again_as_part_of_the_conversation() -> None:
    bench = Bench()
    bench.add(
        span(2, 2, 3, "chat", trace=5, parent=1, agent_name="a"),
        span(3, 4, 5, "execute_tool", trace=5, parent=1, tool_name="t"),
    )
    bench.wait(REORDER_S)
    bench.add(span(4, 6, 7, "chat", trace=5, parent=1, agent_name="b"))  # waits when the root comes
    bench.add(*root())
    bench.wait(REORDER_S)
    first = [(STARTED, ""), (STEP, "a"), (DONE, "a"), (TOOL, "t"), (TOOL_DONE, "t")]
    assert of(bench, TRACE) == [*first, (ENDED, "")]
    assert of(bench, CONVERSATION) == [*first, (STEP, "b"), (DONE, "b")]
    assert bench.collector.notices.counts == {Reason.WORKFLOW_REASSIGNED: 1}
    bench.add(span(6, 7.5, 8, "chat", trace=5, parent=1, agent_name="late"))
    bench.wait(REORDER_S)
    assert of(bench, CONVERSATION)[-2:] == [(STEP, "late"), (DONE, "late")]
    assert bench.events[-1].workflow == CONVERSATION


def test_a_running_step_ends_with_the_workflow_of_its_trace() -> None:
    bench = Bench()
    bench.add(span(2, 2, 3, "chat", trace=5, parent=1, agent_name="a"))
    bench.add(span(3, 2.5, 60, "chat", trace=5, parent=1, agent_name="b"))
    bench.add(span(4, 4, 5, "chat", trace=5, parent=8))  # waits for its agent, and so the end of b waits
    bench.wait(REORDER_S)
    assert of(bench, TRACE) == [(STARTED, ""), (STEP, "a"), (STEP, "b"), (DONE, "a")]
    bench.add(*root(end=70))
    bench.wait(PARENT_S)
    assert of(bench, TRACE) == [(STARTED, ""), (STEP, "a"), (STEP, "b"), (DONE, "a"), (DONE, "b"), (ENDED, "")]
    whole = [(STEP, "a"), (STEP, "b"), (DONE, "a"), (STEP, "shop"), (DONE, "shop"), (DONE, "b")]
    assert of(bench, CONVERSATION) == [(STARTED, ""), *whole]


def test_turns_of_one_conversation_become_one_workflow() -> None:
    bench = Bench()
    for turn in (1, 2, 3):
        bench.add(span(2, turn * 10, turn * 10 + 1, "chat", trace=turn, parent=1, agent_name=f"a{turn}"))
        bench.wait(REORDER_S)
        bench.add(*root(turn, turn * 10 - 1, turn * 10 + 2))
        bench.wait(REORDER_S)
    assert of(bench, CONVERSATION) == [(STARTED, ""), *((kind, f"a{turn}") for turn in (1, 2, 3) for kind in (STEP, DONE))]
    bench.wait(SILENCE_S)
    assert of(bench, CONVERSATION)[-1] == (ENDED, "")
    assert len(bench.collector) == 0


def test_what_is_forgotten_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "HISTORY_SPANS", 2)
    bench = Bench()
    bench.add(
        *[span(number, number, number + 0.5, "chat", trace=5, parent=1, agent_name=f"a{number}") for number in (2, 3, 4, 5)]
    )
    bench.wait(REORDER_S)
    bench.add(*root())
    bench.wait(REORDER_S)
    assert bench.collector.notices.counts[Reason.HISTORY_LOST] == 1
    assert of(bench, TRACE)[-1] == (ENDED, "")
    assert (STEP, "a2") not in of(bench, CONVERSATION)
    assert of(bench, CONVERSATION)[-2:] == [(STEP, "a5"), (DONE, "a5")]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_in_any_order_the_conversation_has_every_step_once(rng: random.Random) -> None:
    spans = [
        *[span(number, number, number + 0.5, "chat", trace=5, parent=1, agent_name=f"a{number}") for number in range(2, 7)],
        *[span(number, number, number + 0.5, "chat", trace=6, parent=1, agent_name=f"a{number}") for number in range(7, 9)],
        *root(),
        *root(6),
    ]
    rng.shuffle(spans)
    bench = Bench()
    for each in spans:
        bench.add(each)
        bench.wait(rng.choice([0.0, 1.0, REORDER_S, 5.0]))
    bench.wait(SILENCE_S)
    bench.wait(SILENCE_S)
    assert len(bench.collector) == 0
    assert sorted(agent for kind, agent in of(bench, CONVERSATION) if kind is STEP) == [f"a{number}" for number in range(2, 9)]
    for workflow in {event.workflow for event in bench.events}:
        assert of(bench, workflow)[0] == (STARTED, "")
        assert of(bench, workflow)[-1] == (ENDED, "")
