"""Spans in any order become one ordered stream of events for each workflow."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.core.workflow.events import WorkflowEvent
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
from tests.integrations.otel_spans import TRACE, span

TRACE_ID = f"{TRACE:032x}"


def trip() -> list[Span]:
    """A planner calls a tool and then a writer. The framework and the client library both report the writer's call."""
    return [
        span(1, 10, 30, "invoke_workflow", agent_name="trip"),
        span(2, 11, 20, "invoke_agent", parent=1, agent_name="planner"),
        span(3, 11.5, 14, "chat", parent=2, usage_input_tokens=9, usage_output_tokens=3, input_messages=ask("Plan a trip.")),
        span(4, 15, 16, "execute_tool", parent=2, tool_name="search"),
        span(5, 17, 19, parent=2),
        span(6, 17.5, 18.5, "chat", parent=5, output_messages=ask("Rome.")),
        span(7, 21, 29, "invoke_agent", parent=1, agent_name="writer"),
        span(8, 22, 28, "chat", parent=7, input_messages=ask("Write it down.")),
        span(9, 23, 27, "chat", parent=8),
    ]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


TRIP = [
    (STARTED, ""),
    (STEP, "planner"),
    (DONE, "planner"),
    (TOOL, "search"),
    (TOOL_DONE, "search"),
    (STEP, "planner"),
    (DONE, "planner"),
    (STEP, "writer"),
    (DONE, "writer"),
    (ENDED, ""),
]


def test_a_workflow() -> None:
    bench = Bench()
    bench.add(*trip())
    assert bench.wait(REORDER_S - 0.1) == []
    events = bench.wait(0.2)
    assert kinds(events) == TRIP
    assert [event.sequence for event in events] == list(range(10))
    assert [event.time for event in events] == [11.5, 11.5, 14, 15, 16, 17.5, 18.5, 22, 28, 30]
    assert {event.workflow for event in events} == {TRACE_ID}
    assert {event.workload for event in events} == {"shop"}
    assert [event.step for event in events if event.kind in (STEP, DONE)] == [0, 0, 1, 1, 2, 2]
    assert (events[2].prompt_tokens, events[2].output_tokens) == (9, 3)
    assert events[1].words == hashed_words("Plan a trip.")
    assert events[6].words == hashed_words("Rome.")
    assert events[7].words == ()  # only the first step has the task
    assert len(bench.collector) == 0


def as_one_conversation(spans: list[Span]) -> list[Span]:
    """The same spans, but each agent in a trace of its own; only the conversation connects them."""
    number = {f"{n:016x}": n for n in range(1, 10)}
    traces = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 3, 8: 3, 9: 3}
    roots = {2, 7}
    return [
        Span(
            trace=f"{traces[number[each.id]]:032x}",
            id=each.id,
            parent="" if number[each.id] in roots else each.parent,
            start_ns=each.start_ns,
            end_ns=each.end_ns,
            role=each.role,
            conversation="c" if number[each.id] in (1, 2, 7) else "",
            agent=each.agent,
            tool=each.tool,
            workload=each.workload,
            prompt_tokens=each.prompt_tokens,
            output_tokens=each.output_tokens,
            task=each.task,
            output=each.output,
        )
        for each in spans
    ]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_any_order_within_the_window_gives_the_same_events(rng: random.Random, conversation: bool) -> None:
    spans = as_one_conversation(trip()) if conversation else trip()
    expected = Bench()
    expected.add(*spans)
    expected.wait(PARENT_S)
    assert kinds(expected.events) == TRIP
    rng.shuffle(spans)
    bench = Bench()
    step = (REORDER_S - 0.1) / len(spans)
    for each in spans:
        bench.add(each)
        assert bench.wait(rng.uniform(0, step)) == []
    for _ in range(50):
        bench.wait(0.5)
    assert bench.events == expected.events


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_duplicates_change_nothing(rng: random.Random) -> None:
    spans = trip()
    rng.shuffle(spans)
    once, twice = Bench(), Bench()
    for each in spans:
        once.add(each)
        twice.add(each, each)
        for bench in (once, twice):
            bench.wait(0.05)
        twice.add(rng.choice(spans[: spans.index(each) + 1]))
    for _ in range(40):
        once.wait(0.5)
        twice.wait(0.5)
        twice.add(rng.choice(spans))
    assert once.events == twice.events
    assert twice.collector.notices.counts[Reason.SPAN_DUPLICATE] > len(spans)


@st.composite
def any_spans(draw: st.DrawFn) -> list[Span]:
    ids = st.integers(1, 6)
    operations = st.sampled_from(["", "chat", "generate_content", "execute_tool", "invoke_agent", "invoke_workflow", "plan"])
    spans = []
    for _ in range(draw(st.integers(1, 25))):
        start = draw(st.integers(1, 40))
        operation = draw(operations)
        spans.append(
            span(
                draw(ids),
                start,
                start + draw(st.integers(0, 10)),
                operation,
                trace=draw(st.integers(1, 3)),
                parent=draw(st.integers(0, 6)),
                conversation_id=draw(st.sampled_from(["", "", "c", "d"])),
                agent_name=draw(st.sampled_from(["", "", "a", "b"])),
                tool_name="t",
            )
        )
    return spans


@settings(max_examples=100, deadline=None)
@given(any_spans(), st.randoms(use_true_random=False))
def test_the_events_of_a_workflow_are_always_well_formed(spans: list[Span], rng: random.Random) -> None:
    bench = Bench(max_workflows=2, max_spans=12, max_waiting_spans=6)
    for each in spans:
        bench.collector.add(each)
        bench.wait(rng.choice([0.0, 0.5, 3.0, 11.0]))
    bench.wait(SILENCE_S)
    bench.wait(SILENCE_S)
    assert len(bench.collector) == 0
    by_workflow: dict[str, list[WorkflowEvent]] = {}
    for event in bench.events:
        by_workflow.setdefault(event.workflow, []).append(event)
    for events in by_workflow.values():
        assert events[0].kind is STARTED
        assert events[-1].kind is ENDED
        assert [event.time for event in events] == sorted(event.time for event in events)
        running: set[int] = set()
        for before, event in zip([None, *events], events, strict=False):
            if event.kind is STARTED:
                assert event.sequence == 0
                assert before is None or (before.kind is ENDED and before.time < event.time)
            else:
                assert before is not None
                assert event.sequence == before.sequence + 1
                assert before.kind is not ENDED
            if event.kind is STEP:
                assert event.agent
                running.add(event.step)
            elif event.kind is DONE:
                running.remove(event.step)
            elif event.kind is ENDED:
                assert not running


def test_a_model_call_waits_for_the_enclosing_agent() -> None:
    bench = Bench()
    bench.add(span(3, 1, 2, "chat", parent=2), span(4, 3, 4, "chat", parent=1, agent_name="other"))
    assert bench.wait(PARENT_S - 1) == []
    bench.add(span(2, 0.5, 9, "invoke_agent", parent=1, agent_name="planner"))
    assert kinds(bench.wait(0.1)) == [(STARTED, ""), (STEP, "planner"), (DONE, "planner"), (STEP, "other"), (DONE, "other")]


def test_a_model_call_waits_for_the_enclosing_agent_only_so_long() -> None:
    bench = Bench()
    bench.add(span(3, 1, 2, "chat", parent=2))
    bench.wait(PARENT_S)
    assert kinds(bench.events) == [(STARTED, ""), (STEP, "shop"), (DONE, "shop")]


def test_a_model_call_does_not_wait_if_no_enclosing_span_names_an_agent() -> None:
    bench = Bench()
    bench.add(span(3, 1, 2, "chat", parent=2), span(2, 0.5, 3, parent=1), span(1, 0.2, 4))
    assert (STEP, "shop") in kinds(bench.wait(REORDER_S))


def test_a_late_span_gets_the_time_of_the_event_before_it() -> None:
    bench = Bench()
    bench.add(span(2, 10, 20, "chat", agent_name="a", parent=1))
    bench.wait(REORDER_S)
    bench.add(span(3, 5, 8, "chat", agent_name="b", parent=1))
    events = bench.wait(REORDER_S)
    assert kinds(events) == [(STEP, "b"), (DONE, "b")]
    assert [event.time for event in events] == [20, 20]


def test_a_span_that_outlasts_the_root_is_emitted_before_the_end() -> None:
    bench = Bench()
    bench.add(span(1, 1, 5, "invoke_workflow"), span(2, 2, 8, "chat", parent=1, agent_name="a"))
    assert kinds(bench.wait(REORDER_S)) == [(STARTED, ""), (STEP, "a"), (DONE, "a"), (ENDED, "")]
    bench.add(span(3, 4, 6, "chat", parent=1, agent_name="b"))
    assert bench.wait(REORDER_S) == []
    assert bench.collector.notices.counts[Reason.SPAN_LATE] == 1


def test_a_conversation_outlasts_its_traces_and_ends_by_silence() -> None:
    bench = Bench()
    for turn in (1, 2):
        bench.add(span(1, turn * 10, turn * 10 + 1, "chat", trace=turn, agent_name="a", conversation_id="c"))
        bench.wait(REORDER_S)
    assert kinds(bench.events) == [(STARTED, ""), *[(STEP, "a"), (DONE, "a")] * 2]
    assert kinds(bench.wait(SILENCE_S)) == [(ENDED, "")]
    assert bench.collector.notices.counts[Reason.WORKFLOW_SILENT] == 1
    bench.add(span(2, 700, 701, "chat", trace=3, agent_name="a", conversation_id="c"))
    again = bench.wait(REORDER_S)
    assert [(event.kind, event.sequence) for event in again] == [(STARTED, 0), (STEP, 1), (DONE, 2)]


def test_a_workflow_within_a_workflow_does_not_end_it() -> None:
    bench = Bench()
    bench.add(
        span(2, 2, 3, "chat", parent=1, agent_name="a"),
        span(3, 4, 7, "invoke_workflow", parent=1),
        span(4, 5, 6, "chat", parent=3, agent_name="b"),
        span(5, 8, 9, "chat", parent=1, agent_name="a"),
    )
    assert (ENDED, "") not in kinds(bench.wait(PARENT_S))
    bench.add(span(1, 1, 10, "invoke_workflow"))
    assert kinds(bench.wait(REORDER_S)) == [(ENDED, "")]


def test_a_trace_without_a_model_call_is_not_a_workflow() -> None:
    bench = Bench()
    bench.add(span(1, 1, 2), *[span(1, 1, 2, parent=7, trace=number) for number in range(2, 6)])
    assert bench.wait(PARENT_S) == []
    assert len(bench.collector) == 0


def test_beyond_the_limit_the_workflow_silent_for_longest_is_ended() -> None:
    bench = Bench(max_workflows=2)
    for number in range(1, 4):
        bench.add(span(1, 1, 2, "chat", trace=number, parent=9, agent_name="a"))
        bench.wait(0.1)
    ended = [event.workflow for event in bench.events if event.kind is ENDED]
    assert ended == [f"{1:032x}"]
    assert bench.collector.notices.counts[Reason.WORKFLOW_DROPPED] == 1


def test_a_flood_is_refused_with_a_reason() -> None:
    bench = Bench(max_workflows=2, max_waiting_spans=3)
    answers = [bench.collector.add(span(number, 1, 2, "chat", parent=99)) for number in range(1, 5)]
    assert answers[:3] == ["", "", ""]
    assert "otel.max_waiting_spans" in answers[3]
    answers = [bench.collector.add(span(1, 1, 2, "chat", trace=number)) for number in range(1, 7)]
    assert "otel.max_workflows" in answers[-1]


@pytest.mark.parametrize("own_agent", ["", "a"])
def test_spans_that_are_their_own_ancestors(own_agent: str) -> None:
    bench = Bench()
    bench.add(span(1, 1, 2, "invoke_agent", parent=2), span(2, 1, 2, "plan", parent=1))
    bench.add(span(3, 1, 2, "chat", parent=1, agent_name=own_agent))
    assert kinds(bench.wait(PARENT_S)) == [(STARTED, ""), (STEP, own_agent or "shop"), (DONE, own_agent or "shop")]
