"""As many workflows of a trace as can be simulated in about a minute."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow

MOST_STEPS = 800
MOST_TOKENS = 8_000_000  # of all prompts
ENOUGH = 24  # workflows: fewer hardly compete for memory


@dataclass(frozen=True, slots=True)
class Sample:
    """Some workflows of a trace."""

    trace: Trace
    of_workflows: int  # in the whole trace
    cut: int = 0  # workflows without their last steps

    @property
    def is_whole(self) -> bool:
        return len(self.trace.workflows) == self.of_workflows


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a sample, all at once."""

    workflows: int
    steps: int = MOST_STEPS
    tokens: int = MOST_TOKENS  # of all prompts


def sample(trace: Trace, bounds: Bounds, seed: int) -> Sample:
    """Workflows up to any of the bounds, at least one. If few are so long that they fill it, only first steps are taken.

    With arrival times they are those that arrive first, so that as many run at a time as in the trace; else they are drawn.

    Args:
        trace: to choose from.
        bounds: of the sample.
        seed: of the draw.

    Raises:
        InvalidArgument: no workflow is wanted.
    """
    if bounds.workflows < 1:
        raise InvalidArgument("workflows", f"must be at least 1, got {bounds.workflows}")
    order = list(range(len(trace.workflows)))
    if trace.starts_at is None:
        random.Random(f"pbkv-sample/{seed}").shuffle(order)
    order = order[: bounds.workflows]
    workflows = {number: trace.workflows[number] for number in order}
    chosen = _fitting(order, workflows, bounds)
    wanted = min(ENOUGH, len(order))
    if len(chosen) < wanted:
        part = replace(bounds, steps=max(1, bounds.steps // wanted), tokens=bounds.tokens // wanted)
        workflows = {number: _beginning(workflow, part) for number, workflow in workflows.items()}
        chosen = _fitting(order, workflows, bounds)
    chosen.sort()
    cut = sum(len(workflows[number].steps) < len(trace.workflows[number].steps) for number in chosen)
    starts = None if trace.starts_at is None else tuple(trace.starts_at[number] for number in chosen)
    return Sample(Trace(trace.name, tuple(workflows[number] for number in chosen), starts), len(trace.workflows), cut)


def _fitting(order: Sequence[int], workflows: Mapping[int, TraceWorkflow], bounds: Bounds) -> list[int]:
    """The first workflows that keep the bounds, at least one."""
    steps = tokens = 0
    chosen: list[int] = []
    for number in order:
        steps += len(workflows[number].steps)
        tokens += sum(step.prompt_tokens for step in workflows[number].steps)
        if chosen and (steps > bounds.steps or tokens > bounds.tokens):
            break
        chosen.append(number)
    return chosen


def _beginning(workflow: TraceWorkflow, bounds: Bounds) -> TraceWorkflow:
    """The first steps of a workflow that keep the bounds, at least one."""
    sums = accumulate(step.prompt_tokens for step in workflow.steps)
    fitting = sum(1 for total in sums if total <= bounds.tokens)
    return replace(workflow, steps=workflow.steps[: max(1, min(fitting, bounds.steps))])


def pseudo_share(workflows: tuple[TraceWorkflow, ...]) -> float:
    """The share of the prompt tokens of which nobody knows the text."""
    tokens = sum(tokens for tokens, _ in _segments(workflows))
    return sum(tokens for tokens, pseudo in _segments(workflows) if pseudo) / max(1, tokens)


def _segments(workflows: tuple[TraceWorkflow, ...]) -> Iterator[tuple[int, bool]]:
    for workflow in workflows:
        for step in workflow.steps:
            for segment in step.prompt:
                yield segment.tokens, segment.pseudo
