"""Samples keep their bounds, and have enough workflows that compete for memory."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.simulator.report.sampling import ENOUGH, Bounds, sample
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow


def trace(lengths: list[int], timed: bool = False) -> Trace:
    """Workflows of so many steps of 100 tokens."""
    step = TraceStep("a", (Segment(SegmentKind.TASK, "t", 100),), "o", 1)
    workflows = tuple(TraceWorkflow(f"w{number}", "app", (step,) * length) for number, length in enumerate(lengths))
    return Trace("t", workflows, tuple(map(float, range(len(lengths)))) if timed else None)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    most=st.integers(1, 60),
    steps=st.integers(1, 300),
    tokens=st.integers(100, 30_000),
    timed=st.booleans(),
)
def test_a_sample_keeps_its_bounds(lengths: list[int], most: int, steps: int, tokens: int, timed: bool) -> None:
    whole = trace(lengths, timed)
    taken = sample(whole, Bounds(most, steps, tokens), seed=0)
    numbers = [int(each.id[1:]) for each in taken.trace.workflows]
    assert 1 <= len(numbers) <= most
    assert taken.of_workflows == len(lengths)
    assert numbers == sorted(set(numbers))
    run = sum(len(each.steps) for each in taken.trace.workflows)
    if len(numbers) > 1:
        assert run <= steps
        assert 100 * run <= tokens
    assert taken.cut == sum(
        len(each.steps) < lengths[number] for number, each in zip(numbers, taken.trace.workflows, strict=True)
    )
    if timed:
        assert numbers == list(range(len(numbers)))
        assert taken.trace.starts_at == tuple(map(float, numbers))
    if taken.is_whole and not taken.cut:
        assert taken.trace == whole


def test_long_workflows_are_cut_so_that_there_are_enough() -> None:
    taken = sample(trace([1000] * 100), Bounds(96, 480, 1_000_000), seed=0)
    assert len(taken.trace.workflows) == taken.cut == ENOUGH
    assert {len(each.steps) for each in taken.trace.workflows} == {480 // ENOUGH}
    untouched = sample(trace([10] * 100), Bounds(96, 480, 1_000_000), seed=0)
    assert (len(untouched.trace.workflows), untouched.cut) == (48, 0)
