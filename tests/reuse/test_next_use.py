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
from pbkv_cluster.reuse.model.contexts import OPEN, STEADY, context_rows, open_rows, settled_sums, steady_rows
from pbkv_cluster.reuse.model.features import FORETOLD, SETTLED, Fact, facts, likeliest
from pbkv_cluster.reuse.model.hazard import Floats, first_use
from pbkv_cluster.reuse.model.next_event import END, Event
from pbkv_cluster.reuse.rank.forecast_blend import Agents, blend, by_agent, foremost, of_forecast
from pbkv_cluster.reuse.rank.next_use import NextUse
from pbkv_cluster.reuse.rank.outlook import Outlook
from pbkv_cluster.reuse.rank.workflow_outlook import WorkflowOutlook
from pbkv_cluster.reuse.record.segment import Segment
from tests.reuse.test_outlook import MOVES, Played
from tests.reuse.workflow_logs import AGENTS, Step, record, workflows

BITS = 18
NAMES = (*AGENTS, END[0])
chances = st.integers(1, 64).map(lambda each: each / 64)
events = st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(0, 4)), chances, max_size=12)
agents = st.dictionaries(st.sampled_from((*NAMES, "stranger")), st.one_of(st.just(0.0), chances), max_size=5)
rows = st.lists(st.lists(st.integers(-1, 2**38), min_size=len(Fact), max_size=len(Fact)), min_size=1, max_size=3)


def test_every_fact_and_every_context_is_of_one_kind() -> None:
    assert sorted([*SETTLED, *FORETOLD]) == list(Fact)
    assert sorted([*STEADY, *OPEN]) == list(range(len(STEADY) + len(OPEN)))
    assert len(STEADY) > len(OPEN) > 0


@given(rows)
def test_places_in_two_steps_are_those_in_one(given_rows: list[list[int]]) -> None:
    table = np.array(given_rows, dtype=np.int64)
    sums, whole = settled_sums(table[:, SETTLED]), context_rows(table, BITS)
    assert (steady_rows(sums, BITS) == whole[:, STEADY]).all()
    assert (open_rows(sums[:, OPEN], table[:, FORETOLD], BITS) == whole[:, OPEN]).all()


@given(events, agents, st.floats(0.001, 0.999))
def test_no_forecast_brings_another_than_the_foremost_to_the_top(
    model: dict[Event, float], forecast: Agents, share: float
) -> None:
    few, own = foremost(model), by_agent(model)
    assert likeliest(few) == likeliest(model)
    assert len(few) <= 2 * len(own)
    blended = blend(model, own, forecast, share)
    all_, chosen = likeliest(blended), likeliest(blend(few, own, forecast, share))
    assert chosen.confidence == all_.confidence
    for one, other in zip(chosen[:2], all_[:2], strict=True):  # what differs by rounding alone may change places
        assert one == other or blended[one] == pytest.approx(blended[other], rel=1e-12)


def taught(examples: Sequence[list[Step]]) -> AccessModel:
    model = AccessModel()
    for steps in examples:
        model.learn(record(steps).steps)
    return model


def anew(model: AccessModel, view: WorkflowOutlook, segments: Sequence[Segment], share: float) -> Floats:
    """The chances of some segments of a workflow, by the longest way."""
    expected = model.events.distribution(view.record.steps)
    if view.foretold:
        expected = blend(expected, by_agent(expected), view.foretold, share)
    return first_use(model.hazard.hazards(facts(view.record, segments, expected)))


@settings(max_examples=30, deadline=None)
@given(st.lists(workflows().filter(bool), min_size=1, max_size=4), st.lists(agents, min_size=1, max_size=4))
def test_one_forecast_after_another_gives_what_each_would_alone(examples: list[list[Step]], forecasts: list[Agents]) -> None:
    model, history = taught(examples), record(examples[-1])
    kept = NextUse(model, history, history.segments)
    expected = model.events.distribution(history.steps)
    assert kept.agents == by_agent(expected)
    for forecast in [*forecasts, {}, *reversed(forecasts)]:
        found = kept.chances(kept.likeliest(forecast, 0.7))
        both = blend(expected, kept.agents, forecast, 0.7) if forecast else expected
        assert found == pytest.approx(first_use(model.hazard.hazards(facts(history, history.segments, both))), rel=1e-4)


def test_it_holds_until_record_or_model_change() -> None:
    steps = [Step("planner", (1, 2), (3,)), Step("coder", (4, 5))]
    model, history = taught([steps]), record(steps)

    def held() -> bool:
        """And a new one holds."""
        found = kept[-1].holds()
        kept.append(NextUse(model, history, history.segments))
        return found and kept[-1].holds()

    kept = [NextUse(model, history, history.segments)]
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


class Compared(Outlook):
    """Finds anew whatever it has brought up to date, and keeps count of what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = self.kept = 0

    def _look(self, view: WorkflowOutlook) -> bool:
        before, standing = view.chances, view.standing
        changed = super()._look(view)
        self.looks += 1
        self.kept += view.standing is standing
        assert changed or view.chances is before
        forecast = view.owners[0].forecast
        news = forecast is not None and forecast.step == view.record.steps[-1].number
        assert view.foretold == (of_forecast(forecast) if news else {})
        segments = list(view.places)
        assert view.chances == pytest.approx(anew(self.model, view, segments, self.trust.share), rel=1e-4)
        asked = {node.owners[owner] for owner in view.owners for node in owner.nodes}
        assert view.standing is standing or set(segments) == asked, "what is kept of a workflow is no more than it has"
        return changed


@settings(max_examples=60, deadline=None)
@given(moves=st.lists(MOVES, max_size=60), guard=st.booleans())
def test_chances_are_those_found_anew_whatever_has_happened(moves: list[tuple[Any, ...]], guard: bool) -> None:
    with patch.object(pbkv, "Outlook", Compared):
        played = Played(guard, Compared)
    for move, *arguments in moves:
        getattr(played, move)(*arguments)
    played.cache.check_integrity()
    assert set(played.outlook.views) <= {owner.id for owner in played.cache.workflows.all()}, "it leaves with its workflow"


def test_forecasts_of_one_step_share_what_is_kept() -> None:
    with patch.object(pbkv, "Outlook", Compared):
        played = Played(False, Compared)
    outlook = played.outlook
    for number in range(3):
        played.run(number, "planner", [number], 1.0)
        played.end(number)
    played.run(0, "planner", [0, 1], 1.0)
    played.look(0)
    looks, kept = outlook.looks, outlook.kept
    for agent in ("coder", "tester", "coder"):
        played.forecast(0, agent, 0.9)
    assert (outlook.looks - looks, outlook.kept - kept) == (3, 3)
    played.forecast(0, "coder", 0.91)
    versions = [list(node.versions) for node in played.cache.tree.walk()]
    played.forecast(0, "coder", 0.92)
    assert [list(node.versions) for node in played.cache.tree.walk()] == versions, "what says nothing else ranks nothing anew"
