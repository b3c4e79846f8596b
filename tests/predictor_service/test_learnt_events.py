"""A predictor that is restarted from its saved state learns from every event of open workflows once."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.state import encoding

EXPERTS = ("markov", "context-tree")
HORIZON = 2

workflows = st.lists(
    st.tuples(st.sampled_from(["app", "other"]), st.lists(st.sampled_from("abc"), min_size=1, max_size=7), st.booleans()),
    min_size=1,
    max_size=6,
)


def predictor(state: bytes = b"") -> ExpertPredictor:
    """A predictor with that state, or one to which no agent is new: what only one workflow has called is not saved."""
    made = ExpertPredictor(PredictorConfig(horizon=HORIZON), EXPERTS)
    if state:
        made.restore(state)
        return made
    for number in range(3):
        for workload in ("app", "other"):
            for event in events(f"{workload}-{number}", workload, ["a", "b", "c"], ends=True):
                made.observe(event)
    return made


def events(name: str, workload: str, agents: list[str], ends: bool) -> Iterator[WorkflowEvent]:
    numbers = count()
    yield WorkflowEvent(EventKind.WORKFLOW_STARTED, name, next(numbers), 1.0, workload)
    for step, agent in enumerate(agents):
        for kind in (EventKind.STEP_STARTED, EventKind.STEP_FINISHED):
            yield WorkflowEvent(kind, name, next(numbers), 2.0 + step, workload, agent, step=step, pieces=(ord(agent),))
    if ends:
        yield WorkflowEvent(EventKind.WORKFLOW_ENDED, name, next(numbers), 99.0, workload)


def interleaved(draw: st.DataObject, found: list[Any]) -> list[WorkflowEvent]:
    streams = [list(events(f"w{at}", *each)) for at, each in enumerate(found)]
    order = draw.draw(st.permutations([at for at, each in enumerate(streams) for _ in each]))
    return [streams[at].pop(0) for at in order]


def in_turn(told: list[WorkflowEvent]) -> list[WorkflowEvent]:
    """The events in the order in which a gateway tells them again: one workflow after another.

    Those of workflows that have ended too: the last ones may not have been acknowledged.
    """
    return [event for name in dict.fromkeys(each.workflow for each in told) for event in told if event.workflow == name]


def forecast(of: ExpertPredictor, workflow: str) -> Any:
    """All of its forecast but the predictability, which is measured now and then, and after a restart."""
    found = of.explain(workflow)
    assert found is not None
    return found.workload, found.begun, found.steps, found.opinions


def learnt(of: ExpertPredictor) -> Any:
    """All that was learnt, in a form that can be compared."""
    state = encoding.from_bytes(of.dump())
    del state["learnt"]
    for model in state["workloads"].values():  # the order of some things says when each was seen last
        model["pieces"]["known"].sort()
        tree = model["experts"]["context-tree"]
        model["experts"]["context-tree"] = dict(zip(map(str, tree["keys"]), tree["counts"].tolist(), strict=True))
    return comparable(state)


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in sorted(value.items())}
    if isinstance(value, list):
        return [comparable(each) for each in value]
    return (value.shape, value.tolist()) if isinstance(value, np.ndarray) else value


@settings(max_examples=40, deadline=None)
@given(workflows, st.data())
def test_events_told_again_after_a_restart_are_learnt_from_once(found: list[Any], data: st.DataObject) -> None:
    stream = interleaved(data, found)
    cut = data.draw(st.integers(0, len(stream)))
    before, after = stream[:cut], stream[cut:]
    never_died = predictor()
    for event in before:
        never_died.observe(event)
    restarted = predictor(never_died.dump())
    ended = {event.workflow for event in before if event.kind is EventKind.WORKFLOW_ENDED}
    names = dict.fromkeys(event.workflow for event in before)
    for event in in_turn(before):
        restarted.observe(event)
    restarted.learn()
    assert learnt(restarted) == learnt(never_died), "it knew all of it"
    for name in names.keys() - ended:
        assert forecast(restarted, name) == forecast(never_died, name)
    for event in after:
        never_died.observe(event)
        restarted.observe(event)
    assert learnt(restarted) == learnt(never_died), "it learns from the outcomes of earlier moments"


@settings(max_examples=40, deadline=None)
@given(workflows, st.data())
def test_a_restart_while_events_are_told_again_makes_none_learnt_from_twice(found: list[Any], data: st.DataObject) -> None:
    stream = interleaved(data, found)
    never_died = predictor()
    for event in stream:
        never_died.observe(event)
    restarted = predictor(never_died.dump())
    for event in in_turn(stream)[: data.draw(st.integers(0, len(stream)))]:
        restarted.observe(event)
    twice = predictor(restarted.dump())
    for event in in_turn(stream):
        twice.observe(event)
    twice.learn()
    assert learnt(twice) == learnt(never_died)


def test_a_restart_before_a_workflow_is_recognised_again_keeps_what_was_learnt_of_it() -> None:
    stream = list(events("w", "", ["a", "b", "a", "c"], ends=False))
    first = predictor()
    for event in stream:
        first.observe(event)
    second = predictor(first.dump())
    for event in stream[:2]:
        second.observe(event)
    third = predictor(second.dump())
    for event in stream:
        third.observe(event)
    assert learnt(third) == learnt(first)


def test_what_was_learnt_of_a_workflow_that_was_forgotten_is_not_learnt_again_after_a_restart() -> None:
    stream = list(events("w", "app", ["a", "b", "a", "c"], ends=False))
    first = predictor()
    for event in stream:
        first.observe(event)
    first.forget("w")
    second = predictor(first.dump())
    for event in stream:
        second.observe(event)
    assert learnt(second) == learnt(first)


def test_an_id_that_is_used_again_is_learnt_from() -> None:
    stream = list(events("w", "app", ["a", "b", "a", "c"], ends=True))
    first = predictor()
    for event in stream[:-1]:
        first.observe(event)
    restarted, reference = predictor(first.dump()), predictor(first.dump())
    for event in stream:
        restarted.observe(replace(event, time=event.time + 100.0))
        reference.observe(replace(event, workflow="another", time=event.time + 100.0))
    assert learnt(restarted) == learnt(reference)


def test_a_restart_before_a_workflow_is_heard_again_keeps_what_was_learnt_of_it() -> None:
    stream = list(events("w", "app", ["a", "b", "a", "c"], ends=False))
    first = predictor()
    for event in stream:
        first.observe(event)
    second = predictor(predictor(first.dump()).dump())
    for event in stream:
        second.observe(event)
    assert learnt(second) == learnt(first)
