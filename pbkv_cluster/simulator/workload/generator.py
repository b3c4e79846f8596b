"""Generates workflows of multi-agent applications, as the same values as recorded ones.

For each workflow are drawn, from a random stream of its own:

- the application: uniformly;
- the difficulty of the task: twice Beta(2, 2), so that the mean is 1. It multiplies the weight of every retry edge;
- the next agent: in proportion to the weights of the present agent's edges, until END or `max_steps`;
- lengths of tasks, replies and tool results: log-normal around the given median, sigma 0.4;
- durations of tools: log-normal around the tool's median, sigma 0.8.

Reuse follows from how agent frameworks build prompts: a preamble common to the application, the agent's system prompt, the
task, and the agent's private memory, to which each of its turns adds what it was told, what a tool returned and what it
replied. So the next prompt of an agent begins with its last one, and its first prompt shares the system prompt with other
workflows. How much of that is still cached depends on what ran meanwhile: other agents of the workflow, and other workflows
during tool calls. After a workflow has ended, only its system prompts are of use.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.applications import APPLICATIONS, END, Application, Edge

MARKUP_TOKENS = 4  # chat markup around a reply in a later prompt, as in the recorded traces

_LENGTH_SIGMA = 0.4
_DURATION_SIGMA = 0.8


@dataclass(frozen=True, slots=True)
class Sizes:
    """Median lengths in tokens."""

    preamble: int = 64
    system: int = 256
    task: int = 128
    output: int = 128
    tool_result: int = 256

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a length is below 1.
        """
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise InvalidArgument(f"sizes.{item.name}", f"must be at least 1, got {getattr(self, item.name)}")


def generate(
    count: int,
    seed: int = 0,
    sizes: Sizes | None = None,
    applications: Sequence[Application] = APPLICATIONS,
    max_steps: int = 32,
) -> Iterator[TraceWorkflow]:
    """The first `count` workflows of a seed. Each depends on the seed and its own number only, not on `count`.

    Args:
        count: number of workflows.
        seed: of everything that is drawn.
        sizes: median lengths; the default is short prompts of real frameworks.
        applications: to draw from.
        max_steps: a workflow with so many steps ends, whichever agent it is at.

    Raises:
        InvalidArgument: a value is out of range.
    """
    if count < 0:
        raise InvalidArgument("count", f"must not be negative, got {count}")
    if max_steps < 1:
        raise InvalidArgument("max_steps", f"must be at least 1, got {max_steps}")
    if not applications:
        raise InvalidArgument("applications", "must name at least one")
    sizes = sizes or Sizes()
    for number in range(count):
        draws = random.Random(f"pbkv/{seed}/{number}")
        application = draws.choice(applications)
        yield _Run(application, f"{application.name}-{seed}-{number:04}", sizes, draws).play(max_steps)


class _Run:
    """One workflow that is being generated."""

    def __init__(self, application: Application, workflow_id: str, sizes: Sizes, draws: random.Random) -> None:
        self._application = application
        self._id = workflow_id
        self._sizes = sizes
        self._draws = draws
        self._difficulty = 2 * draws.betavariate(2, 2)
        self._task = Segment(SegmentKind.TASK, f"{workflow_id}/task", self._length(sizes.task))
        self._memories: defaultdict[str, list[Segment]] = defaultdict(list)

    def play(self, max_steps: int) -> TraceWorkflow:
        steps: list[TraceStep] = []
        agent = self._application.start
        while agent != END and len(steps) < max_steps:
            edge = self._next(agent) if len(steps) + 1 < max_steps else Edge(END, 1.0)
            steps.append(self._step(agent, edge, len(steps)))
            agent = edge.to
        return TraceWorkflow(self._id, self._application.name, tuple(steps))

    def _next(self, agent: str) -> Edge:
        edges = self._application.agents[agent].edges
        weights = [edge.weight * self._difficulty if edge.retry else edge.weight for edge in edges]
        return self._draws.choices(edges, weights)[0]

    def _step(self, name: str, edge: Edge, number: int) -> TraceStep:
        agent = self._application.agents[name]
        output = self._length(self._sizes.output * agent.output)
        output_id = f"{self._id}/output/{number}"
        prompt = (*self._head(name), self._task, *self._memories[name])
        reply = Segment(SegmentKind.HISTORY, output_id, output + MARKUP_TOKENS)
        heard_by = self._application.agents if self._application.group else {name, edge.to} - {END}
        for listener in heard_by:
            self._memories[listener].append(reply)
        pause = 0.0
        if edge.tool is not None:
            pause = edge.tool.median_s * self._draws.lognormvariate(0.0, _DURATION_SIGMA)
            result = self._length(self._sizes.tool_result * edge.tool.result)
            self._memories[edge.to].append(Segment(SegmentKind.TOOL, f"{self._id}/tool/{number}", result))
        return TraceStep(
            agent=name,
            prompt=prompt,
            output_id=output_id,
            output_tokens=output,
            tool=edge.tool.name if edge.tool is not None else "",
            pause_s=pause,
        )

    def _head(self, agent: str) -> tuple[Segment, Segment]:
        name = self._application.name
        system = max(1, round(self._sizes.system * self._application.agents[agent].system))
        return (
            Segment(SegmentKind.SHARED, f"{name}/preamble", self._sizes.preamble),
            Segment(SegmentKind.SYSTEM, f"{name}/{agent}/system", system),
        )

    def _length(self, median: float) -> int:
        return max(1, round(median * self._draws.lognormvariate(0.0, _LENGTH_SIGMA)))
