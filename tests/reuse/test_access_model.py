"""The access model as it is trained, sent, saved and loaded."""

import io
import json
import random
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.access_log import Run, StepLog
from pbkv_cluster.reuse.model import next_event
from pbkv_cluster.reuse.model.access_model import FORMAT, AccessModel, AccessUpdate, Changes
from pbkv_cluster.reuse.model.features import facts
from pbkv_cluster.reuse.model.next_event import END
from tests.reuse.taught_models import dump, load, taught
from tests.reuse.workflow_logs import AGENTS, Step, record, workflows

some = st.lists(workflows(5), min_size=1, max_size=4)


def same(one: AccessModel, other: AccessModel, steps: list[Step]) -> None:
    """Both say the same of a workflow, bit for bit, and have learnt the same."""
    history = record(steps)
    expected = one.events.distribution(history.steps)
    assert list(other.events.distribution(history.steps).items()) == list(expected.items())
    if history.steps:
        rows = facts(history, history.segments, expected)
        assert (one.hazard.hazards(rows) == other.hazard.hazards(rows)).all()
    equal(one.export(), other.export())


def equal(one: AccessUpdate, other: AccessUpdate) -> None:
    assert one.contexts == other.contexts
    for name in ("rows", "at_risk", "uses", "weights"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype
        assert (first == second).all()


@settings(max_examples=20, deadline=None)
@given(some, some)
def test_who_applies_every_change_knows_what_the_learner_knows(before: list[list[Step]], later: list[list[Step]]) -> None:
    learner = taught(record(steps).steps for steps in before)
    follower, by_wire = AccessModel(), load(dump(learner))
    follower.apply(learner.export())
    gathered = Changes()
    batched = load(dump(learner))
    for steps in later:
        changes = learner.learn(record(steps).steps)
        gathered = Changes(gathered.rows | changes.rows, gathered.contexts | changes.contexts)
        assert bool(changes) == bool(steps)
        update = learner.export(changes)
        for _ in range(2):  # again does no harm
            follower.apply(update)
        by_wire.apply(AccessUpdate.from_bytes(update.to_bytes()))
    batched.apply(learner.export(gathered))  # several workflows' at once
    for other in (follower, by_wire, batched):
        same(learner, other, later[-1])


def test_an_update_stays_what_it_was_while_the_learner_goes_on() -> None:
    learner = AccessModel()
    steps = record([Step("planner", (1,)), Step("coder", (1, 2))]).steps
    learner.learn(steps)
    update, again = learner.export(learner.learn(steps)), load(dump(learner)).export()
    assert (np.diff(update.rows) > 0).all()
    learner.learn(steps)
    assert (update.weights == again.weights).all()
    assert (update.weights != learner.hazard.weights).any()
    assert (update.at_risk != learner.hazard.at_risk[update.rows]).any()


def test_learner_and_follower_forget_the_same_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_event, "MOST_CONTEXTS", 30)
    learner, follower, source = AccessModel(), AccessModel(), random.Random(0)
    for _ in range(40):
        steps = [Step(source.choice(AGENTS), (source.randrange(3),)) for _ in range(source.randrange(1, 6))]
        follower.apply(learner.export(learner.learn(record(steps).steps)))
        assert list(follower.events.counts()) == list(learner.events.counts())


@settings(max_examples=20, deadline=None)
@given(some)
def test_bytes_give_back_the_update(workflows_: list[list[Step]]) -> None:
    model = AccessModel()
    for steps in workflows_:
        update = model.export(model.learn(record(steps).steps))
        equal(AccessUpdate.from_bytes(update.to_bytes()), update)
    equal(AccessUpdate.from_bytes(dump(model)), model.export())


def test_a_workflow_whose_log_is_wrong_teaches_nothing() -> None:
    model = AccessModel()
    model.learn(record([Step("planner", (1, 2))]).steps)
    before = model.export()
    assert not model.learn([])
    with pytest.raises(ValueError, match="came_from"):
        model.learn([StepLog(0, "a", -1, 0, 0.0, [Run(2)], ended_at=1.0), StepLog(1, "a", 5, 1, 2.0, ended_at=3.0)])
    equal(model.export(), before)


def test_workflows_that_always_go_the_same_way_are_foretold() -> None:
    steps = [Step("planner", (1,), (2,)), Step("coder", (3, 4)), Step("planner", (1, 2, 5))]
    model = taught(record(steps).steps for _ in range(40))
    history = record(steps[:2])
    events = model.events.distribution(history.steps)
    assert max(events, key=lambda event: events[event])[0] == "planner"
    hazards = model.hazard.hazards(facts(history, history.segments, events))
    for segment, row in zip(history.segments, hazards, strict=True):
        used = segment.used_at[0] == 0
        assert (row[0] > 0.9) if used else (row[0] < 0.1), "the planner's path is used next, the coder's never"


@cache
def dumped() -> bytes:
    return dump(taught([record([Step("planner", (1, 2), (3,)), Step("coder", (1, 2, 3, 4))]).steps]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    whole = bytearray(dumped())
    match data.draw(st.sampled_from(("flip", "cut", "both"))):
        case "cut":
            damaged = bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        case how:
            for _ in range(data.draw(st.integers(1, 4))):
                whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
            damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))] if how == "both" else whole)
    with suppress(ValueError):
        equal(AccessUpdate.from_bytes(damaged), AccessUpdate.from_bytes(dumped()))  # what was damaged is no part of it


@given(st.binary(max_size=300))
@example(b"")
@example(b"PK\x03\x04")
@example(b"PK\x05\x06" + bytes(18))
@example(b"\x93NUMPY\x01\x00")
def test_bytes_of_something_else_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an access model"):
        AccessUpdate.from_bytes(data)


def saved(**arrays: object) -> bytes:
    """A whole file, with other arrays in it."""
    out = io.BytesIO()
    with np.load(io.BytesIO(dumped())) as good:
        np.savez_compressed(out, **{**good, **arrays})
    return out.getvalue()


def text(content: object) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def events(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"belongs": text([FORMAT, 3, True])},
        {"belongs": text([FORMAT, "app"])},
        {"belongs": text(["another", "app", True])},
        {"belongs": text({})},
        {"places": np.int32(3)},
        {"places": np.zeros((2, 2), dtype=np.int32)},
        {"places": np.arange(3, dtype=np.int32)},
        {"places": np.array(["a"])},
        {"chances": np.float32(1)},
        {"weights": np.zeros(3, dtype=np.float32)},
        {"weights": np.array("?")},
        {"names": np.frombuffer(b"{}", dtype=np.uint8)},
        {"names": np.frombuffer(b"[1]", dtype=np.uint8)},
        {"names": np.frombuffer(b"[" * 100_000, dtype=np.uint8)},
        {"events": np.array("?")},
        {"events": events((0, 0, 0, np.nan))},
        {"events": events((0, 99, 0, 1))},
        {"events": events((0, 0, 0, -4))},
        {"events": events((0, 0, 0, 0))},
        {"events": events((0, 0.5, 0, 1))},
        {"events": events((-1, 0, 0, 1))},
        {"events": events((2.0**40, 0, 0, 1))},
        {"events": events((0, 0, 0.5, 1))},
        {"events": np.array([{}], dtype=object)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_file_of_other_shapes_or_values_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not an access model"):
        AccessUpdate.from_bytes(saved(**wrong))


def test_counts_that_contradict_each_other_are_refused() -> None:
    shape = load(dumped()).export().at_risk.shape
    for chances, uses in ((0.0, 1.0), (1.0, -1.0), (np.nan, 0.0), (1.0, np.inf)):
        wrong = saved(chances=np.full(shape, chances, np.float32), uses=np.full(shape, uses, np.float32))
        with pytest.raises(ValueError, match="not an access model"):
            load(wrong)


def test_a_model_of_nothing_can_be_saved() -> None:
    empty = load(dump(AccessModel()))
    assert empty.events.distribution([]) == {}
    assert END not in empty.events.distribution([])
