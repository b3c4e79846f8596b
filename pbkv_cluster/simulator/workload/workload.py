"""What a simulation runs: which workflows arrive, in which order and when, and how long each pauses between steps."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.tools import announced_calls, draw_pauses

_MAJORITY = 0.8  # share of the workflows in one half of a drifting workload that come from that half's traces


@dataclass(frozen=True, slots=True)
class Arrival:
    """One workflow of a workload."""

    id: str  # unique in the workload
    workflow: TraceWorkflow
    pauses: tuple[float, ...]  # seconds after each step
    starts_at: float | None = None  # seconds; None: as soon as another workflow has ended
    tool_calls: tuple[ToolCall, ...] = ()  # announced after each step but the last; empty: none is


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals in order. In a closed loop, `concurrency` workflows run at a time; in an open loop it is 0."""

    name: str
    arrivals: tuple[Arrival, ...]
    concurrency: int


@dataclass(frozen=True, slots=True)
class Mix:
    """How to make a workload of traces."""

    workflows: int | None = None  # None: as many as the traces have
    concurrency: int = 32
    think_scale: float | None = None  # factor of the log-normal part of a pause; None: as `assumed_think_scale` says
    drift: bool = False  # the first half of the traces prevails in the first half of the workload, the others later
    announce_sigma: float | None = None  # log-normal error of announced pauses; None: no pause is announced
    tool_share: float = 0.0  # share of the log-normal part's variance, in its logarithm, that the tool determines

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of range.
        """
        if self.workflows is not None and self.workflows < 1:
            raise InvalidArgument("workflows", f"must be at least 1, got {self.workflows}")
        if self.concurrency < 1:
            raise InvalidArgument("concurrency", f"must be at least 1, got {self.concurrency}")
        if self.think_scale is not None and not 0 <= self.think_scale < 1e6:
            raise InvalidArgument("think_scale", f"must be from 0 to 1e6, got {self.think_scale}")
        if self.announce_sigma is not None and not 0 <= self.announce_sigma <= 10:
            raise InvalidArgument("announce_sigma", f"must be from 0 to 10, got {self.announce_sigma}")
        if not 0 <= self.tool_share <= 1:
            raise InvalidArgument("tool_share", f"must be from 0 to 1, got {self.tool_share}")


def assumed_think_scale(traces: Iterable[Trace]) -> float:
    """The factor of the log-normal part of pauses where none is given: 0 if some trace logs a pause, and settings that suit the
    trace shall suit its own pauses; 1 if none does, since workflows without pauses would hardly compete for the cache.
    """
    workflows = [workflow for trace in traces for workflow in trace.workflows]
    logged = any(step.pause_s for workflow in workflows for step in workflow.steps)
    return 0.0 if logged or all(len(workflow.steps) < 2 for workflow in workflows) else 1.0


def make_workload(traces: Sequence[Trace], mix: Mix, seed: int, starts: Sequence[float] | None = None) -> Workload:
    """Draws a workload.

    Each trace's workflows are shuffled. When all have arrived they arrive again, as copies whose private texts, those of one
    workflow only, are replaced by new ones; texts that several workflows share stay the same. Traces get equal shares.

    A pause is the logged one plus a log-normal time (median 2 s, sigma 1) times `mix.think_scale`, because many logs of agent
    frameworks leave out tools and people that a service waits for. It depends on the seed, the arrival and the step alone.

    Args:
        traces: at least one. A single trace with arrival times makes an open loop at these times.
        mix: what to draw.
        seed: of everything that is drawn.
        starts: arrival times in seconds, for an open loop.

    Raises:
        InvalidArgument: there is no trace, there are fewer arrival times than workflows, or a share of added pauses is to be
            the tool's and none are added.
    """
    if not traces:
        raise InvalidArgument("traces", "must name at least one")
    think_scale = assumed_think_scale(traces) if mix.think_scale is None else mix.think_scale
    if mix.tool_share and not think_scale:
        raise InvalidArgument("tool_share", "is a share of added pauses, and none are added: set think_scale above 0")
    name = "+".join(trace.name for trace in traces)
    own = traces[0].starts_at
    if starts is None and own is not None and len(traces) == 1:
        timed = list(zip(traces[0].workflows, own, strict=True))[: mix.workflows]
        arrivals = tuple(_arrival(number, workflow, mix, think_scale, seed, at) for number, (workflow, at) in enumerate(timed))
        return Workload(name, arrivals, 0)
    wanted = mix.workflows or (len(starts) if starts is not None else sum(len(trace.workflows) for trace in traces))
    if starts is not None and len(starts) < wanted:
        raise InvalidArgument("starts", f"has {len(starts)} arrival times, fewer than {wanted} workflows need")
    drawn = _draw(traces, wanted, mix.drift, seed)
    arrivals = tuple(
        _arrival(number, workflow, mix, think_scale, seed, None if starts is None else starts[number])
        for number, workflow in enumerate(drawn)
    )
    return Workload(name, arrivals, mix.concurrency if starts is None else 0)


def _arrival(number: int, workflow: TraceWorkflow, mix: Mix, think_scale: float, seed: int, starts_at: float | None) -> Arrival:
    own_seed = f"{seed}/{number}"
    pauses = draw_pauses(workflow, think_scale, mix.tool_share, own_seed)
    calls = announced_calls(workflow, pauses, mix.announce_sigma, own_seed)
    return Arrival(f"{number}:{workflow.id}", workflow, pauses, starts_at, calls)


def _draw(traces: Sequence[Trace], wanted: int, drift: bool, seed: int) -> Iterator[TraceWorkflow]:
    shared = _shared_ids(traces)
    streams = [_shuffled(trace, shared, f"pbkv-order/{seed}/{number}") for number, trace in enumerate(traces)]
    draws = random.Random(f"pbkv-mix/{seed}")
    first = -(-len(streams) // 2)
    for number in range(wanted):
        group = streams
        if drift and len(streams) > 1:
            early = (number < wanted / 2) == (draws.random() < _MAJORITY)
            group = streams[:first] if early else streams[first:]
        yield next(draws.choice(group))


def _shuffled(trace: Trace, shared: frozenset[str], seed: str) -> Iterator[TraceWorkflow]:
    draws = random.Random(seed)
    copy = 0
    while True:
        order = list(trace.workflows)
        draws.shuffle(order)
        for workflow in order:
            yield _private(workflow, f"#{copy}", shared) if copy else workflow
        copy += 1


def _shared_ids(traces: Sequence[Trace]) -> frozenset[str]:
    """Ids of texts that at least two workflows share."""
    owners: Counter[str] = Counter()
    for trace in traces:
        for workflow in trace.workflows:
            owners.update({name for step in workflow.steps for name in _ids(step)})
    return frozenset(name for name, count in owners.items() if count > 1)


def _ids(step: TraceStep) -> Iterator[str]:
    yield step.output_id
    for segment in step.prompt:
        yield segment.id


def _private(workflow: TraceWorkflow, suffix: str, shared: frozenset[str]) -> TraceWorkflow:
    def own(name: str) -> str:
        return name if name in shared else name + suffix

    steps = tuple(
        replace(
            step,
            prompt=tuple(replace(segment, id=own(segment.id)) for segment in step.prompt),
            output_id=own(step.output_id),
        )
        for step in workflow.steps
    )
    return replace(workflow, id=workflow.id + suffix, steps=steps)
