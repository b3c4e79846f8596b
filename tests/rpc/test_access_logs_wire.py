"""Access logs and updates of the access model on their way: what arrives is what was sent, or is refused by name."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.access_log import SYMBOLS, AccessLog, Run, StepLog
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate
from pbkv_cluster.reuse.model.hazard import HazardModel
from pbkv_cluster.reuse.model.next_event import END, NextEventModel
from pbkv_cluster.rpc import access_logs as wire
from pbkv_cluster.rpc.access_logs import log_to_wire, logs_from_wire
from pbkv_cluster.rpc.v1 import predictor_pb2
from pbkv_cluster.simulator.workload.access_logs import access_logs
from tests.reuse.taught_models import taught
from tests.simulator.simulated import trace

LOGS = [log.steps for log in access_logs(trace(8).workflows)]

blocks = st.integers(0, wire.MAX_BLOCKS)
positions = st.integers(-1, wire.MAX_STEPS - 1)
names = st.text(min_size=1, max_size=64)
seconds = st.floats(0.0, 1e12)
runs = st.builds(Run, st.integers(1, wire.MAX_BLOCKS), st.integers(0, 2), st.integers(0, 2**32 - 1))
steps = st.builds(
    StepLog,
    number=st.integers(0, 2**31 - 1),
    agent=names,
    came_from=positions,
    follows=blocks,
    began_at=seconds,
    runs=st.lists(runs, max_size=4),
    symbol=st.integers(0, SYMBOLS - 1),
    output_blocks=blocks,
    ended_at=st.just(-1.0) | seconds,
    repeats=positions,
    repeats_to=blocks,
)
logs = st.builds(AccessLog, names, st.lists(steps, min_size=1, max_size=5), names | st.just(""))


@given(st.lists(logs, max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_log_arrives_as_it_was_sent(sent: list[AccessLog]) -> None:
    request = predictor_pb2.ReportAccessRequest(logs=map(log_to_wire, sent))
    assert logs_from_wire(predictor_pb2.ReportAccessRequest.FromString(request.SerializeToString()).logs) == sent


Message = predictor_pb2.AccessLog


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda log: log.ClearField("workflow_id"), "workflow_id"),
        (lambda log: setattr(log, "workflow_id", "é" * 129), "workflow_id"),
        (lambda log: log.ClearField("steps"), "steps"),
        (lambda log: log.steps[1].ClearField("agent_id"), "steps[1].agent_id"),
        (lambda log: setattr(log.steps[1], "agent_id", "a" * 257), "steps[1].agent_id"),
        (lambda log: setattr(log.steps[1], "number", -1), "steps[1].number"),
        (lambda log: setattr(log.steps[1], "came_from", -2), "steps[1].came_from"),
        (lambda log: setattr(log.steps[1], "repeats", wire.MAX_STEPS), "steps[1].repeats"),
        (lambda log: setattr(log.steps[1], "follows", -1), "steps[1].follows"),
        (lambda log: setattr(log.steps[1], "output_blocks", wire.MAX_BLOCKS + 1), "steps[1].output_blocks"),
        (lambda log: setattr(log.steps[1], "repeats_to", -1), "steps[1].repeats_to"),
        (lambda log: setattr(log.steps[1], "symbol", SYMBOLS), "steps[1].symbol"),
        (lambda log: setattr(log.steps[1], "symbol", -1), "steps[1].symbol"),
        (lambda log: setattr(log.steps[1], "began_at_s", math.nan), "steps[1].began_at_s"),
        (lambda log: setattr(log.steps[1], "ended_at_s", math.inf), "steps[1].ended_at_s"),
        (lambda log: setattr(log.steps[1], "ended_at_s", -1.0), "steps[1].ended_at_s"),
        (lambda log: log.steps[1].runs.add(), "steps[1].runs.blocks"),
        (lambda log: log.steps[1].runs.add(blocks=wire.MAX_BLOCKS + 1), "steps[1].runs.blocks"),
        (lambda log: log.steps[1].runs.add(blocks=1, sharing=3), "steps[1].runs.sharing"),
        (lambda log: log.steps[1].runs.extend([log.steps[1].Run(blocks=1)] * (wire.MAX_RUNS + 1)), "steps[1].runs"),
        (lambda log: log.steps.extend([log.steps[0]] * wire.MAX_STEPS), "steps"),
    ],
)
def test_a_wrong_field_is_named(spoil: Callable[[Message], object], field: str) -> None:
    good, wrong = (log_to_wire(AccessLog("w", LOGS[0])) for _ in range(2))
    assert logs_from_wire([good])
    spoil(wrong)
    with pytest.raises(InvalidArgument) as raised:
        logs_from_wire([good, wrong])
    assert raised.value.field == f"logs[1].{field}"


def test_there_may_not_be_too_much_of_it() -> None:
    step = predictor_pb2.AccessStep(agent_id="a")
    many = predictor_pb2.AccessLog(workflow_id="w", steps=[step] * wire.MAX_STEPS)
    assert len(logs_from_wire([many, many])) == 2
    with pytest.raises(InvalidArgument, match=r"^logs\.steps: "):
        logs_from_wire([many, many, many])
    step.runs.extend([step.Run(blocks=1)] * wire.MAX_RUNS)
    with pytest.raises(InvalidArgument, match=r"^logs\.steps\.runs: "):
        logs_from_wire([predictor_pb2.AccessLog(workflow_id="w", steps=[step] * 17)])


wild = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 6)
wild_steps = st.builds(
    predictor_pb2.AccessStep,
    number=wild,
    agent_id=st.sampled_from(["", "a", "b"]),
    came_from=st.none() | wild,
    follows=wild,
    began_at_s=st.floats(),
    runs=st.lists(
        st.builds(
            predictor_pb2.AccessStep.Run,
            blocks=st.integers(0, 3) | st.integers(0, 2**32 - 1),
            sharing=st.integers(0, 3),
            key=st.integers(0, 9),
        ),
        max_size=3,
    ),
    symbol=wild,
    output_blocks=wild,
    ended_at_s=st.none() | st.floats(),
    repeats=st.none() | wild,
    repeats_to=wild,
)
small = st.integers(0, 6)
mild_steps = st.builds(
    StepLog,
    small,
    st.sampled_from("ab"),
    st.integers(-1, 6),
    small,
    st.just(0.0),
    st.lists(st.builds(Run, st.integers(1, 3), st.integers(0, 2), small), max_size=3),
    st.integers(0, SYMBOLS - 1),
    small,
    st.sampled_from([-1.0, 1.0]),
    st.integers(-1, 6),
    small,
)


@given(st.lists(wild_steps, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_comes_is_taken_or_named(found: list[predictor_pb2.AccessStep]) -> None:
    field = ""
    try:
        logs_from_wire([predictor_pb2.AccessLog(workflow_id="w", steps=found)])
    except InvalidArgument as error:
        field = error.field
    assert not field or field.startswith("logs[0].steps[")


@given(st.lists(mild_steps, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_a_log_whose_fields_are_in_range_is_learnt_from_or_contradicts_itself(found: list[StepLog]) -> None:
    model = AccessModel()
    try:
        changes = model.learn(found)
    except ValueError:
        assert not model.hazard.at_risk.any()
        assert not len(model.events)
    else:
        assert AccessUpdate.from_bytes(model.export(changes).to_bytes()).workflows == 1


# --- updates ---


def same(first: AccessUpdate, second: AccessUpdate) -> bool:
    arrays = ("rows", "at_risk", "uses", "weights")
    return first.contexts == second.contexts and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    )


def equal(first: AccessModel, second: AccessModel) -> bool:
    return same(first.export(), second.export())


@given(st.integers(0, len(LOGS) - 1), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_an_update_survives_its_bytes(start: int, count: int) -> None:
    model = AccessModel()
    for steps in (LOGS + LOGS)[start : start + count]:
        update = model.export(model.learn(steps))
        assert same(AccessUpdate.from_bytes(update.to_bytes()), update)
    assert update.workflows == count


@given(st.integers(1_000, 100_000))
@settings(max_examples=20, deadline=None)
def test_parts_make_up_the_whole(limit: int) -> None:
    model, copy = taught(LOGS), AccessModel()
    parts = list(model.export().parts(limit))
    for part in parts:
        copy.apply(part)
        assert part.rows.nbytes + part.at_risk.nbytes + part.uses.nbytes <= limit
        events = sum(len(counts) for _, counts in part.contexts)
        assert events * 32 <= limit or len(part.contexts) == 1
    assert equal(copy, model)
    assert sum(part.workflows for part in parts) == len(LOGS)
    assert list(AccessModel().export().parts(limit)) == []


PACKED = taught(LOGS[:2]).export().to_bytes()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # numpy reads a damaged header as a Python literal
@given(st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_harmless(damage: list[tuple[int, int]], cut: bool) -> None:
    data = bytearray(PACKED)
    for at, value in damage:
        data[at] = value
    if cut:
        del data[damage[0][0] :]
    usable(bytes(data))


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an access model"):
        AccessUpdate.from_bytes(data)


def usable(data: bytes) -> None:
    """Fails unless it is refused, or gives a model that can be asked."""
    problem, model = "", AccessModel()
    try:
        update = AccessUpdate.from_bytes(data)
    except ValueError as error:
        problem = str(error)
    if problem:
        assert problem.startswith("not an access model: ")
        return
    model.apply(update)
    chances = model.events.distribution(LOGS[0])
    assert all(0.0 <= chance <= 1.0 for chance in chances.values())
    assert sum(chances.values()) <= 1.0 + 1e-6  # less where a context is missing
    opinions = np.log((model.hazard.uses + 0.1) / (model.hazard.at_risk - model.hazard.uses + 0.1))
    assert np.isfinite(opinions).all()


UPDATE = taught(LOGS[:2]).export()


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (replace(UPDATE, rows=UPDATE.rows - 2**17), "places beyond the table"),
        (replace(UPDATE, rows=UPDATE.rows[:-1]), "chances has shape"),
        (replace(UPDATE, rows=UPDATE.rows.astype(np.int64)), "places has shape"),
        (replace(UPDATE, uses=UPDATE.uses + 1), "uses must lie"),
        (replace(UPDATE, uses=-UPDATE.uses - 1), "uses must lie"),
        (replace(UPDATE, at_risk=UPDATE.at_risk * np.float32(np.nan)), "chances must be finite"),
        (replace(UPDATE, weights=UPDATE.weights[1:]), "weights has shape"),
        (replace(UPDATE, contexts=((5, ((("a", 0), 0.0),)),)), "count"),
        (replace(UPDATE, contexts=((5, ((("a", SYMBOLS), 1.0),)),)), "symbol"),
        (replace(UPDATE, contexts=((-1, ((("a", 0), 1.0),)),)), "context"),
        (replace(UPDATE, contexts=((5, ((("a", 0), math.inf),)),)), "finite"),
    ],
)
def test_an_update_that_makes_no_sense_is_refused(wrong: AccessUpdate, problem: str) -> None:
    with pytest.raises(ValueError, match=f"not an access model: .*{problem}"):
        AccessUpdate.from_bytes(wrong.to_bytes())


def test_the_events_of_a_context_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbkv_cluster.reuse.model.next_event._MOST_EVENTS", 8)
    model = NextEventModel()
    for number in range(50):
        model.learn([StepLog(0, f"agent-{number}", -1, 0, 0.0)])
    (counts,) = [counts for context, counts in model.counts() if context == 0]
    assert len(counts) == 8
    assert counts[END] == 50
    assert ("agent-49", 12) in counts


def test_the_table_has_the_size_that_the_test_assumes() -> None:
    assert HazardModel.rows() == 2**17
