"""Small workloads for the simulator's tests."""

from collections.abc import Iterable, Iterator, Sequence

from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.traces.writing import encoded, line_of
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Arrival, Mix, Workload, make_workload

BLOCK = 16
SIZES = Sizes(preamble=32, system=96, task=48, output=24, tool_result=64)


def trace(workflows: int = 16, seed: int = 0, max_steps: int = 10) -> Trace:
    """Generated workflows with short prompts."""
    return Trace(f"made-{seed}", tuple(generate(workflows, seed, SIZES, max_steps=max_steps)))


def source(
    workflows: int = 16, seed: int = 0, concurrency: int = 6, think_scale: float = 0.02, max_steps: int = 10
) -> TokenSource:
    """The workflows of `trace` as a workload in a closed loop."""
    mix = Mix(concurrency=concurrency, think_scale=think_scale)
    return TokenSource(make_workload([trace(workflows, seed, max_steps)], mix, seed), PromptBuilder())


def one_by_one(*prompts: str) -> TokenSource:
    """Workflows of one step each that run one after the other. Each letter of a prompt is a segment of four blocks; one more
    token follows, so that a cache can deliver all segments.
    """
    arrivals = []
    for number, letters in enumerate(prompts):
        segments = [Segment(SegmentKind.SYSTEM, letter, 4 * BLOCK) for letter in letters]
        last = Segment(SegmentKind.TASK, f"end-{number}", 1)
        workflow = TraceWorkflow(f"w{number}", "hand-made", (TraceStep("agent", (*segments, last), f"out-{number}", 1),))
        arrivals.append(Arrival(f"{number}", workflow, (0.0,)))
    return TokenSource(Workload("hand-made", tuple(arrivals), 1), PromptBuilder())


def workload_of(workflows: Sequence[TraceWorkflow], concurrency: int, pause_s: float = 0.0) -> TokenSource:
    """Workflows in the order given, each step followed by the same pause."""
    arrivals = tuple(
        Arrival(f"{number}", workflow, (pause_s,) * len(workflow.steps)) for number, workflow in enumerate(workflows)
    )
    return TokenSource(Workload("given", arrivals, concurrency), PromptBuilder())


def lines_of(workflows: Iterable[TraceWorkflow]) -> Iterator[bytes]:
    """The lines of a step trace of some workflows."""
    for workflow in workflows:
        for position in range(len(workflow.steps)):
            yield encoded(line_of(workflow, position))
