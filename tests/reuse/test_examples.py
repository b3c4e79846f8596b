"""What is learnt from a log, against a reading of the blocks of each step."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.access_log import Run, StepLog
from pbkv_cluster.reuse.model.examples import Examples, examples
from pbkv_cluster.reuse.model.features import Fact
from pbkv_cluster.reuse.model.next_event import NextEventModel
from tests.reuse.workflow_logs import Path, Step, record, workflows


def uses(steps: list[Step]) -> dict[Path, list[int]]:
    """The steps that used each block, by the path down to it."""
    found: dict[Path, list[int]] = {}
    for number, step in enumerate(steps):
        for depth in range(1, len(step.path) + 1):
            found.setdefault(step.path[:depth], []).append(number)
    return found


def read(steps: list[Step]) -> Counter[tuple[int, int, int, int, int, bool]]:
    """Blocks by when they were known, how far off their next use was, and what was known of them then: the age, the last steps
    that used them, how often, and whether they had only been generated."""
    found: Counter[tuple[int, int, int, int, int, bool]] = Counter()
    for path, used in uses(steps).items():
        for when in range(used[0], len(steps)):
            before = [number for number in used if number <= when]
            distance = next((number - when for number in used if number > when), 0)
            mask = sum(1 << (when - number) for number in before if when - number < 16)
            output = all(len(path) > len(steps[number].prompt) for number in before)
            found[when, distance, when - before[-1], mask, min(len(before), 6), output] += 1
    return found


def weighed(found: Examples) -> Counter[tuple[int, int, int, int, int, bool]]:
    counted: Counter[tuple[int, int, int, int, int, bool]] = Counter()
    for row, when, distance, blocks in zip(*(column.tolist() for column in found), strict=True):
        key = when, distance, row[Fact.AGE], row[Fact.USED_16], row[Fact.USES], bool(row[Fact.OUTPUT])
        counted[key] += blocks
    return counted


@settings(max_examples=200, deadline=None)
@given(workflows(10))
def test_each_block_is_an_example_after_each_step(steps: list[Step]) -> None:
    found = examples(record(steps).steps, NextEventModel())
    assert weighed(found) == read(steps)
    assert (found.when[1:] >= found.when[:-1]).all()
    live = Counter(dict.fromkeys(range(len(steps)), 0))
    for used in uses(steps).values():
        live.update(range(used[0], len(steps)))
    weight: Counter[int] = Counter()
    for when, blocks in zip(found.when.tolist(), found.blocks.tolist(), strict=True):
        weight[when] += blocks
    assert weight == +live


@settings(max_examples=50, deadline=None)
@given(workflows(8), workflows(3))
def test_what_was_known_does_not_depend_on_what_came_later(steps: list[Step], later: list[Step]) -> None:
    """But for the cuts: each block has the row that it would have had."""
    short = examples(record(steps).steps, NextEventModel())
    long = examples(record(steps + later).steps, NextEventModel())

    def known(found: Examples) -> Counter[tuple[int, ...]]:
        counted: Counter[tuple[int, ...]] = Counter()
        for row, when, _, blocks in zip(*(column.tolist() for column in found), strict=True):
            if when < len(steps):
                counted[(when, *row)] += blocks
        return counted

    assert known(short) == known(long)


def test_the_parts_of_a_segment_that_was_cut_have_futures_of_their_own() -> None:
    steps = [Step("a", (1, 2, 3, 4, 5)), Step("b", (9,)), Step("a", (1, 2, 7))]
    found = examples(record(steps).steps, NextEventModel())
    first = [
        (distance, blocks, row[Fact.BLOCKS])
        for row, when, distance, blocks in zip(*(column.tolist() for column in found), strict=True)
        if when == 0
    ]
    assert sorted(first) == [(0, 3, 3), (2, 2, 3)], "five blocks long as far as was known, all of them"


def test_the_next_event_is_the_one_foretold_by_the_model() -> None:
    steps = [Step("planner", (1,)), Step("coder", (2,))]
    model, log = NextEventModel(), record(steps).steps
    before = examples(log, model).facts
    for _ in range(5):
        model.learn(log)
    after = examples(log, model).facts
    expected = {Fact.IN_NEXT, Fact.NEXT, Fact.CONFIDENCE, Fact.IN_SECOND, Fact.SECOND, Fact.NEXT_SYMBOL}
    assert {Fact(at) for at in (before != after).any(axis=0).nonzero()[0]} <= expected
    assert (before[:, Fact.NEXT] != after[:, Fact.NEXT]).all()


def test_nothing_and_nonsense() -> None:
    assert len(examples([], NextEventModel()).when) == 0
    assert len(examples([StepLog(0, "a", -1, 0, 0.0)], NextEventModel()).when) == 0, "a step without a full block"
    with pytest.raises(ValueError, match="came_from"):
        examples([StepLog(0, "a", 3, 1, 0.0, [Run(1)])], NextEventModel())


@settings(deadline=None)
@given(workflows(8), st.integers(0, 5))
def test_a_log_is_not_changed_by_learning(steps: list[Step], times: int) -> None:
    history = record(steps)
    model, before = NextEventModel(), [repr(step) for step in history.steps]
    for _ in range(times):
        examples(history.steps, model)
        model.learn(history.steps)
    assert [repr(step) for step in history.steps] == before
