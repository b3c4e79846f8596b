"""Which workflows are open, how far each one's events have been taken, and which workers have its steps."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent

Workers: TypeAlias = frozenset[str] | None
"""Ids of the workers that have had steps of a workflow; None: unknown, it may be any."""


class EventOutcome(Enum):
    """What becomes of an event.

    A WORKFLOW_STARTED whose time is after that of the workflow's latest event, or of its end, opens the workflow anew.
    """

    ACCEPTED = "accepted"  # the next event of an open workflow, or the first of a new one
    REOPENED = "reopened"  # accepted; the id of an open workflow is used again, since its end was lost
    DUPLICATE = "duplicate"  # ignored: taken before, or overtaken by a later event
    AFTER_END = "after_end"  # ignored: the workflow has ended

    @property
    def accepted(self) -> bool:
        """Whether the event is to be applied."""
        return self in (EventOutcome.ACCEPTED, EventOutcome.REOPENED)


@dataclass(slots=True)
class _OpenWorkflow:
    sequence: int  # of the latest event
    time: float  # of the latest event, by its sender's clock
    heard_at: float  # when it arrived, by this process's clock
    workers: Workers


class OpenWorkflows:
    """A bounded number of open workflows, and the latest ones that have ended."""

    def __init__(self, clock: Clock, lease_s: float, max_workflows: int, max_ended: int) -> None:
        """Args:
        clock: for the silence of workflows.
        lease_s: silence after which `drop_silent` drops a workflow.
        max_workflows: beyond, the one silent for longest is dropped.
        max_ended: ended workflows remembered, so that their late events are ignored.
        """
        self._clock = clock
        self._lease_s = lease_s
        self._max_workflows = max_workflows
        self._max_ended = max_ended
        self._open: OrderedDict[str, _OpenWorkflow] = OrderedDict()  # silent for longest first
        self._ended: dict[str, float] = {}  # time of the end, oldest first

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, workflow: str) -> bool:
        return workflow in self._open

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def has_ended(self, workflow: str) -> bool:
        """Whether a workflow is known to have ended."""
        return workflow in self._ended

    def on_worker(self, worker: str) -> list[str]:
        """The open workflows that have had a step on a worker, or may have had one."""
        return [name for name, each in self._open.items() if may_be_on(worker, each.workers)]

    def judge(self, event: WorkflowEvent) -> EventOutcome:
        """What is to become of an event. Changes nothing: `record` follows once it has been applied."""
        known = self._open.get(event.workflow)
        started = event.kind is EventKind.WORKFLOW_STARTED
        if known is None:
            ended_at = self._ended.get(event.workflow)
            again = ended_at is None or (started and event.time > ended_at)
            return EventOutcome.ACCEPTED if again else EventOutcome.AFTER_END
        if event.sequence > known.sequence:
            return EventOutcome.ACCEPTED
        return EventOutcome.REOPENED if started and event.time > known.time else EventOutcome.DUPLICATE

    def record(self, event: WorkflowEvent, outcome: EventOutcome) -> tuple[Workers, bool]:
        """Notes an accepted event.

        Returns:
            The workers that have had steps of the workflow, and whether its forecast is to be sent. It is not if a step was
            placed on a worker that had others before, which changes nothing.
        """
        name = event.workflow
        known = None if outcome is EventOutcome.REOPENED else self._open.get(name)
        workers = _workers(known, event)
        same = event.kind is EventKind.STEP_PLACED and workers is not None and known is not None and workers == known.workers
        self._ended.pop(name, None)
        if event.kind is EventKind.WORKFLOW_ENDED:
            self._open.pop(name, None)
            self._ended[name] = event.time
            if len(self._ended) > self._max_ended:
                del self._ended[next(iter(self._ended))]
        else:
            self._open[name] = _OpenWorkflow(event.sequence, event.time, self._clock.now(), workers)
            self._open.move_to_end(name)
        return workers, not same

    def drop_excess(self) -> list[str]:
        """Drops the workflows silent for longest while there are too many. Returns their ids."""
        return [self._open.popitem(last=False)[0] for _ in range(len(self._open) - self._max_workflows)]

    def drop_silent(self) -> list[str]:
        """Drops the workflows that have been silent for longer than the lease. Returns their ids."""
        oldest_allowed, dropped = self._clock.now() - self._lease_s, []
        while self._open and next(iter(self._open.values())).heard_at < oldest_allowed:
            dropped.append(self._open.popitem(last=False)[0])
        return dropped


def may_be_on(worker: str, workers: Workers) -> bool:
    """Whether a worker is among those that have had steps of a workflow, or may be."""
    return workers is None or worker in workers


def _workers(known: _OpenWorkflow | None, event: WorkflowEvent) -> Workers:
    """The workers after one more event. If an event was lost, it may have placed a step on any worker."""
    workers: Workers
    if known is None:
        workers = frozenset() if event.kind is EventKind.WORKFLOW_STARTED else None
    else:
        workers = known.workers if event.sequence == known.sequence + 1 else None
    return workers | {event.worker} if workers is not None and event.kind is EventKind.STEP_PLACED else workers
