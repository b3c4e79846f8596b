"""The open workflows that a gateway has in memory."""

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.store.block_map import WorkerKey

_MAX_TOOL_CALLS = 262_144  # of all workflows, remembered to recognise repeats; some 200 bytes each


class RunningStep(Protocol):
    """What a workflow has to know of its steps."""

    def cancel(self) -> None: ...


@dataclass(eq=False, slots=True)
class OpenWorkflow:
    """One open workflow."""

    id: str
    workload: str
    tenant: str
    lease_s: float
    started_at: float  # seconds since the epoch
    renewed_at: float  # on the clock's `now`
    written_at: float = -math.inf  # on the clock's `now`; the latest write of its entry in the directory
    steps: int = 0  # started so far; also the number of the next one
    events: int = 0  # sent so far; also the sequence of the next one
    running: set[RunningStep] = field(default_factory=set)
    last_worker: WorkerKey | None = None  # that got the latest step
    served_by: set[str] | None = field(default_factory=set)  # ids of workers; None: unknown, another gateway held it before
    leased_on: set[str] = field(default_factory=set)  # ids of workers on which it has block leases, which end with it
    ended: bool = False  # or held by another gateway now
    moved: bool = False  # held by another gateway now
    taken: int = 0  # times that a gateway has taken it over
    step_graph: StepGraph | None = None  # declared by the client
    serial: int = -1  # counts the workflows of this process; -1: not open yet

    @property
    def expires_at(self) -> float:
        return self.renewed_at + self.lease_s

    def silent(self, now: float) -> bool:
        """Whether the lease has expired and no step runs that would renew it."""
        return not self.ended and not self.running and self.expires_at <= now

    def next_event(self) -> int:
        """The sequence of the workflow's next event."""
        self.events += 1
        return self.events - 1


class Expired(NamedTuple):
    """Workflows whose lease has expired."""

    silent: list[OpenWorkflow]
    busy: list[OpenWorkflow]  # run a step, so their lease starts anew


class OpenWorkflows:
    """Every open workflow by its id, and by when its lease expires."""

    def __init__(self, clock: Clock, max_workflows: int, max_graph_bytes: int) -> None:
        """Args:
        clock: for the leases.
        max_workflows: that may be open.
        max_graph_bytes: of all their step graphs together, see `StepGraph.size_bytes`.
        """
        self._clock = clock
        self._max = max_workflows
        self._max_graph_bytes = max_graph_bytes
        self._graph_bytes = 0
        self._tool_calls: OrderedDict[int, bool] = OrderedDict()  # by hash; whether it runs
        self._workflows: dict[str, OpenWorkflow] = {}
        # One entry per workflow. Renewing a lease leaves its entry where it is, so that a call costs nothing here; the entry
        # is looked at again when the old lease would have expired.
        self._leases: list[tuple[float, int, OpenWorkflow]] = []
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._workflows)

    @property
    def lease_entries(self) -> int:
        """Entries of the lease queue, those of ended workflows included: at most 64 more than twice the open workflows."""
        return len(self._leases)

    def get(self, workflow_id: str) -> OpenWorkflow | None:
        """The open workflow of that id, its lease renewed."""
        workflow = self._workflows.get(workflow_id)
        if workflow is not None:
            workflow.renewed_at = self._clock.now()
        return workflow

    def peek(self, workflow_id: str) -> OpenWorkflow | None:
        """The open workflow of that id; its lease is not renewed."""
        return self._workflows.get(workflow_id)

    def all(self) -> Collection[OpenWorkflow]:
        """Every open workflow."""
        return self._workflows.values()

    def add(self, workflow: OpenWorkflow) -> None:
        """Raises:
        ResourceExhausted: too many workflows are open, or their step graphs are too large.
        """
        if len(self._workflows) >= self._max:
            raise ResourceExhausted(f"{self._max} workflows are open already")
        size_bytes = _graph_bytes(workflow)
        if self._graph_bytes + size_bytes > self._max_graph_bytes:
            raise ResourceExhausted(
                f"a step graph of {size_bytes} bytes is too much: those of open workflows have {self._graph_bytes} of "
                f"{self._max_graph_bytes} (gateway.max_graph_bytes)"
            )
        self._graph_bytes += size_bytes
        workflow.serial = next(self._serial)
        self._workflows[workflow.id] = workflow
        heapq.heappush(self._leases, (workflow.expires_at, workflow.serial, workflow))

    def remove(self, workflow: OpenWorkflow) -> None:
        """Ends a workflow."""
        workflow.ended = True
        if self._workflows.get(workflow.id) is workflow:
            del self._workflows[workflow.id]
            self._graph_bytes -= _graph_bytes(workflow)
            workflow.step_graph = None  # its entry may wait long to be removed from the directory
        if len(self._leases) > 2 * len(self._workflows) + 64:
            self._leases = [entry for entry in self._leases if not entry[2].ended]
            heapq.heapify(self._leases)

    def note_tool_call(self, workflow: OpenWorkflow, tool: str, call_id: str, started: bool) -> bool:
        """Notes that a tool call has started or finished; False if that was known."""
        call = xxh3_64_intdigest(f"{workflow.serial}\0{tool}\0{call_id}".encode())
        if self._tool_calls.get(call) is started:
            return False
        self._tool_calls[call] = started
        self._tool_calls.move_to_end(call)
        if len(self._tool_calls) > _MAX_TOOL_CALLS:
            self._tool_calls.popitem(last=False)
        return True

    def expired(self) -> Expired:
        """The workflows whose lease has expired. Each is returned again after another lease, unless it is removed."""
        now = self._clock.now()
        silent: list[OpenWorkflow] = []
        busy: list[OpenWorkflow] = []
        due: list[tuple[float, int, OpenWorkflow]] = []
        while self._leases and self._leases[0][0] <= now:
            due.append(heapq.heappop(self._leases))
        # Pushed back only after the loop: a lease too short to move the clock would be due again at once.
        for _, serial, workflow in due:
            if workflow.ended:
                continue
            if workflow.expires_at <= now:
                (busy if workflow.running else silent).append(workflow)
            if workflow.running:
                workflow.renewed_at = now
            heapq.heappush(
                self._leases,
                (workflow.expires_at if workflow.expires_at > now else now + workflow.lease_s, serial, workflow),
            )
        return Expired(silent, busy)


def _graph_bytes(workflow: OpenWorkflow) -> int:
    return 0 if workflow.step_graph is None else workflow.step_graph.size_bytes
