"""What is kept of a workflow between forecasts, against all of it found anew."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.policies import pbkv
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.reuse.model.contexts import (
    CONTEXT_ORDER,
    EVENT_CONTEXTS,
    FIRST_EVENT_CONTEXT,
    RECORD_CONTEXTS,
    context_rows,
    event_sums,
    record_sums,
    table_rows,
)
from pbkv_cluster.reuse.model.features import (
    EVENT_FACTS,
    RELATION_FACTS,
    RELATIONS,
    SEGMENT_FACTS,
    UNKNOWN,
    WORKFLOW_FACTS,
    Fact,
    event_facts,
    facts,
    top_events,
)
from pbkv_cluster.reuse.model.hazard import Floats, first_use
from pbkv_cluster.reuse.model.next_event import END, Event
from pbkv_cluster.reuse.rank.forecast_blend import Agents, blend, by_agent, of_forecast, top_two_by_agent
from pbkv_cluster.reuse.rank.next_use import NextEvents, NextUse, Question, next_uses
from pbkv_cluster.reuse.rank.outlook import Outlook
from pbkv_cluster.reuse.rank.workflow_outlook import WorkflowOutlook
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity
from pbkv_cluster.reuse.record.segment import Segment
from tests.reuse.test_outlook import MOVES, Played
from tests.reuse.workflow_logs import AGENTS, Step, record, workflows

BITS = 18
NAMES = (*AGENTS, END[0])
chances = st.integers(1, 64).map(lambda each: each / 64)
events = st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(0, 4)), chances, max_size=12)
agents = st.dictionaries(st.sampled_from((*NAMES, "stranger")), st.one_of(st.just(0.0), chances), max_size=5)
values = st.integers(-1, 2**38)
columns = st.lists(st.lists(values, min_size=len(SEGMENT_FACTS), max_size=len(SEGMENT_FACTS)), min_size=1, max_size=3)


def test_every_fact_and_every_context_is_of_one_kind() -> None:
    assert sorted([*SEGMENT_FACTS, *RELATION_FACTS, *WORKFLOW_FACTS, *EVENT_FACTS]) == list(Fact)
    assert sorted(CONTEXT_ORDER) == list(range(len(RECORD_CONTEXTS) + len(EVENT_CONTEXTS)))
    assert len(RECORD_CONTEXTS) == FIRST_EVENT_CONTEXT > len(EVENT_CONTEXTS) > 0


@given(columns, st.lists(values, min_size=len(WORKFLOW_FACTS), max_size=len(WORKFLOW_FACTS)), events, st.data())
def test_rows_in_two_steps_are_those_in_one(
    segments: list[list[int]], workflow: list[int], expected: dict[Event, float], data: st.DataObject
) -> None:
    top = top_events(expected)
    relations = [data.draw(st.integers(0, RELATIONS**2 - 1)) for _ in segments]
    table = np.empty((len(segments), len(Fact)), dtype=np.int64)
    table[:, SEGMENT_FACTS], table[:, WORKFLOW_FACTS], table[:, EVENT_FACTS] = segments, workflow, event_facts(top)
    table[:, RELATION_FACTS] = [divmod(relation, RELATIONS) for relation in relations]
    sums = record_sums(segments, [workflow], [len(segments)])
    sums[:, FIRST_EVENT_CONTEXT:] += event_sums(relations, [top], [len(segments)])
    assert (table_rows(sums, BITS) == context_rows(table, BITS)[:, CONTEXT_ORDER]).all()


@given(events, agents, st.floats(0.001, 0.999))
def test_no_forecast_brings_another_than_the_two_likeliest_of_an_agent_to_the_top(
    model: dict[Event, float], forecast: Agents, share: float
) -> None:
    few, own = top_two_by_agent(model), by_agent(model)
    assert top_events(few) == top_events(model)
    assert len(few) <= 2 * len(own)
    blended = blend(model, own, forecast, share)
    all_, chosen = top_events(blended), top_events(blend(few, own, forecast, share))
    assert chosen.confidence == all_.confidence
    for one, other in zip(chosen[:2], all_[:2], strict=True):  # what differs by rounding alone may change places
        assert one == other or blended[one] == pytest.approx(blended[other], rel=1e-12)


def taught(examples: Sequence[list[Step]]) -> AccessModel:
    model = AccessModel()
    for steps in examples:
        model.learn(record(steps).steps)
    return model


def anew(model: AccessModel, outlook: WorkflowOutlook, segments: Sequence[Segment], share: float) -> Floats:
    """The next use of some segments of a workflow, by the longest way."""
    expected = model.events.distribution(outlook.record.steps)
    if outlook.predicted:
        expected = blend(expected, by_agent(expected), outlook.predicted, share)
    return first_use(model.hazard.hazards(facts(outlook.record, segments, expected)))


@settings(max_examples=30, deadline=None)
@given(st.lists(workflows().filter(bool), min_size=1, max_size=4), st.lists(agents, min_size=1, max_size=4))
def test_one_forecast_after_another_gives_what_each_would_alone(examples: list[list[Step]], forecasts: list[Agents]) -> None:
    model, history = taught(examples), record(examples[-1])
    next_events = NextEvents(model, history)
    first = next_events.top({}, 0.7)
    ((next_use, probability),) = next_uses(model, [Question(history, history.segments, first)])
    assert (next_use.probability(first) == probability).all()
    expected = model.events.distribution(history.steps)
    assert next_events.agents == by_agent(expected)
    for forecast in [*forecasts, {}, *reversed(forecasts)]:
        found = next_use.probability(next_events.top(forecast, 0.7))
        both = blend(expected, next_events.agents, forecast, 0.7) if forecast else expected
        assert found == pytest.approx(first_use(model.hazard.hazards(facts(history, history.segments, both))), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(workflows().filter(bool), min_size=1, max_size=4))
def test_workflows_together_have_the_next_uses_of_each_alone(played: list[list[Step]]) -> None:
    model, records = taught(played), [record(steps) for steps in played]
    questions = [Question(each, each.segments, NextEvents(model, each).top({}, 0.5)) for each in records]
    for question, (next_use, probability) in zip(questions, next_uses(model, questions), strict=True):
        ((_, alone),) = next_uses(model, [question])
        assert (probability == alone).all()
        assert (next_use.probability(question.top) == alone).all()


def test_it_is_valid_until_record_or_model_change() -> None:
    steps = [Step("planner", (1, 2), (3,)), Step("coder", (4, 5))]
    model, history = taught([steps]), record(steps)

    def computed() -> NextUse:
        ((found, _),) = next_uses(model, [Question(history, history.segments, UNKNOWN)])
        return found

    def held() -> bool:
        """And a new one is valid."""
        found = kept[-1].valid
        kept.append(computed())
        return found and kept[-1].valid

    kept = [computed()]
    assert held()
    model.apply(taught([steps]).export())
    assert not held()
    model.learn(history.steps)
    assert not held()
    history.end(1, 9.0)
    assert not held()
    history.write(1, bytes(64))
    assert not held()
    assert held()


def test_next_events_are_valid_until_a_step_begins_or_the_model_changes() -> None:
    steps = [Step("planner", (1, 2), (3,)), Step("coder", (4, 5))]
    model, history = taught([steps]), record(steps)
    events = NextEvents(model, history)
    history.end(1, 9.0)
    history.write(1, bytes(64))
    assert events.valid
    assert events.top({}, 0.5) == NextEvents(model, history).top({}, 0.5)
    history.begin(2, "planner", b"", 0, 10.0, PrefixPopularity(10))
    assert not events.valid
    events = NextEvents(model, history)
    model.apply(taught([steps]).export())
    assert not events.valid


class Compared(Outlook):
    """Computes anew whatever it has brought up to date, and counts what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions = self.kept = 0

    def predict(self, outlooks: Sequence[WorkflowOutlook]) -> bool:
        before = [(outlook.probability, outlook.next_use) for outlook in outlooks]
        changed = super().predict(outlooks)
        for outlook, (probability, next_use) in zip(outlooks, before, strict=True):
            self.predictions += 1
            self.kept += outlook.next_use is next_use
            assert changed or outlook.probability is probability
            self.check(outlook, outlook.next_use is next_use)
        return changed

    def check(self, outlook: WorkflowOutlook, kept: bool) -> None:
        forecast = outlook.users[0].forecast
        news = forecast is not None and forecast.step == outlook.record.steps[-1].number
        assert outlook.predicted == (of_forecast(forecast) if news else {})
        segments = list(outlook.rows)
        assert outlook.probability == pytest.approx(
            anew(self.models.of(outlook.workload), outlook, segments, self.trust.share), rel=1e-4
        )
        asked = {segment for user in outlook.users for segment in user.segments()}
        assert kept or set(segments) == asked, "what is kept of a workflow is no more than it has"


@settings(max_examples=60, deadline=None)
@given(moves=st.lists(MOVES, max_size=60), guard=st.booleans())
def test_next_uses_are_those_computed_anew_whatever_has_happened(moves: list[tuple[Any, ...]], guard: bool) -> None:
    with patch.object(pbkv, "Outlook", Compared):
        played = Played(guard, Compared)
    for move, *arguments in moves:
        getattr(played, move)(*arguments)
    played.cache.check_integrity()
    assert set(played.outlook.workflows) <= {owner.id for owner in played.cache.workflows.all()}, "it leaves with its workflow"


def test_forecasts_of_one_step_share_what_is_kept() -> None:
    with patch.object(pbkv, "Outlook", Compared):
        played = Played(False, Compared)
    outlook = played.outlook
    for number in range(3):
        played.run(number, "planner", [number], 1.0)
        played.end(number)
    played.run(0, "planner", [0, 1], 1.0)
    played.look(0)
    predictions, kept = outlook.predictions, outlook.kept
    for agent in ("coder", "tester", "coder"):
        played.forecast(0, agent, 0.9)
    assert (outlook.predictions - predictions, outlook.kept - kept) == (3, 3)
    played.forecast(0, "coder", 0.91)
    versions = [list(node.versions) for node in played.cache.tree.walk()]
    played.forecast(0, "coder", 0.92)
    assert [list(node.versions) for node in played.cache.tree.walk()] == versions, "what says nothing else ranks nothing anew"
