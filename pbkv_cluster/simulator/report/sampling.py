"""As many workflows of a trace as can be simulated in about a minute."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow

MOST_STEPS = 800
MOST_TOKENS = 4_000_000  # of all prompts


@dataclass(frozen=True, slots=True)
class Sample:
    """Some workflows of a trace."""

    trace: Trace
    of_workflows: int  # in the whole trace

    @property
    def is_whole(self) -> bool:
        return len(self.trace.workflows) == self.of_workflows


def sample(
    trace: Trace, most_workflows: int, seed: int, most_steps: int = MOST_STEPS, most_tokens: int = MOST_TOKENS
) -> Sample:
    """Workflows up to any of the bounds, at least one.

    With arrival times they are those that arrive first, so that as many run at a time as in the trace; else they are drawn.

    Args:
        trace: to choose from.
        most_workflows: of the sample.
        seed: of the draw.
        most_steps: of all its workflows.
        most_tokens: of all its prompts.

    Raises:
        InvalidArgument: `most_workflows` is below 1.
    """
    if most_workflows < 1:
        raise InvalidArgument("workflows", f"must be at least 1, got {most_workflows}")
    order = list(range(len(trace.workflows)))
    if trace.starts_at is None:
        random.Random(f"pbkv-sample/{seed}").shuffle(order)
    steps = tokens = 0
    chosen: list[int] = []
    for number in order[:most_workflows]:
        workflow = trace.workflows[number]
        steps += len(workflow.steps)
        tokens += sum(step.prompt_tokens for step in workflow.steps)
        if chosen and (steps > most_steps or tokens > most_tokens):
            break
        chosen.append(number)
    chosen.sort()
    starts = None if trace.starts_at is None else tuple(trace.starts_at[number] for number in chosen)
    return Sample(Trace(trace.name, tuple(trace.workflows[number] for number in chosen), starts), len(trace.workflows))


def pseudo_share(workflows: tuple[TraceWorkflow, ...]) -> float:
    """The share of the prompt tokens of which nobody knows the text."""
    tokens = sum(tokens for tokens, _ in _segments(workflows))
    return sum(tokens for tokens, pseudo in _segments(workflows) if pseudo) / max(1, tokens)


def _segments(workflows: tuple[TraceWorkflow, ...]) -> Iterator[tuple[int, bool]]:
    for workflow in workflows:
        for step in workflow.steps:
            for segment in step.prompt:
                yield segment.tokens, segment.pseudo
