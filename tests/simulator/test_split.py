"""Splits by task: parts are disjoint, and the part of a task depends on nothing else."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.split import part_of, split
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow

SHARES = {"train": 0.6, "tune": 0.2, "show": 0.2}
STEP = TraceStep("agent", (Segment(SegmentKind.TASK, "t", 5),), "out", 1)

groups = st.lists(st.integers(0, 20).map(lambda number: f"task-{number}"), max_size=40)
shares = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda weights: {f"part-{number}": weight / sum(weights) for number, weight in enumerate(weights)}
)


def trace(names: list[str], timed: bool = False) -> Trace:
    workflows = tuple(TraceWorkflow(f"w{number}", "made", (STEP,), group) for number, group in enumerate(names))
    return Trace("made", workflows, tuple(map(float, range(len(names)))) if timed else None)


@given(groups, shares, st.text(max_size=5))
def test_parts_are_the_whole_and_share_no_group(names: list[str], wanted: dict[str, float], salt: str) -> None:
    whole = trace(names, timed=True)
    parts = split(whole, wanted, salt)
    assert list(parts) == list(wanted)
    assert whole.starts_at is not None
    pairs = []
    for part in parts.values():
        assert part.name == whole.name
        assert part.starts_at is not None
        assert sorted(part.starts_at) == list(part.starts_at), "each part keeps the order"
        pairs += list(zip(part.workflows, part.starts_at, strict=True))
    assert sorted(pairs, key=lambda pair: pair[1]) == list(zip(whole.workflows, whole.starts_at, strict=True))
    held = [{workflow.group for workflow in part.workflows} for part in parts.values()]
    assert sum(map(len, held)) == len(set().union(*held))


@given(groups, st.randoms(use_true_random=False))
def test_a_part_depends_on_neither_order_nor_others(names: list[str], draws: random.Random) -> None:
    some = [name for name in names if draws.random() < 0.5]
    draws.shuffle(some)
    for part, cut in split(trace(some), SHARES).items():
        of_all = {workflow.group for workflow in split(trace(names), SHARES)[part].workflows}
        assert {workflow.group for workflow in cut.workflows} <= of_all


def test_shares_are_met_on_average_and_salts_are_independent() -> None:
    names = [f"task-{number}" for number in range(4000)]
    first, second = ({name: part_of(name, SHARES, salt) for name in names} for salt in ("a", "b"))
    for part, share in SHARES.items():
        for found in (first, second):
            assert sum(each == part for each in found.values()) / len(names) == pytest.approx(share, abs=0.04)
        both = sum(first[name] == second[name] == part for name in names) / len(names)
        assert both == pytest.approx(share * share, abs=0.04)


def test_the_split_stays_what_it_is() -> None:
    found = [part_of(f"task-{number}", SHARES, "x") for number in range(8)]
    assert found == ["show", "train", "train", "train", "train", "tune", "show", "train"]


def test_a_workflow_without_a_group_is_one_of_its_own() -> None:
    alone = TraceWorkflow("w", "made", (STEP,))
    assert alone.group == "w"
    assert replace(alone, id="w#1").group == "w", "a copy is of the same task"


@pytest.mark.parametrize("wrong", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}, {"a": float("nan")}])
def test_wrong_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match="shares"):
        split(trace(["a"]), wrong)
