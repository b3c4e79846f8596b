"""Open workflows, as a gateway holds them in memory."""

import heapq
import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.step_graph import StepGraph

if TYPE_CHECKING:
    from pbkv_cluster.gateway.step.step import Step

_MAX_TOOL_CALLS = 1024  # of one workflow, remembered to tell repeats


@dataclass(eq=False, slots=True)
class Session:
    """One open workflow."""

    id: str
    workload: str
    tenant: str
    lease_s: float
    started_at: float  # seconds since the epoch
    renewed_at: float  # on the clock's `now`
    recorded_at: float = -math.inf  # on the clock's `now`; when the directory last heard of it
    steps: int = 0  # started so far; also the number of the next one
    events: int = 0  # sent so far; also the sequence of the next one
    running: set["Step"] = field(default_factory=set)
    last_worker: str = ""  # id of the worker that got the latest step
    served_by: set[str] | None = field(default_factory=set)  # ids of workers; None: any, after a restart of the gateway
    ended: bool = False
    step_graph: StepGraph | None = None  # that the client has declared
    _tools: OrderedDict[tuple[str, str], bool] = field(default_factory=OrderedDict)

    @property
    def expires_at(self) -> float:
        return self.renewed_at + self.lease_s

    def silent(self, now: float) -> bool:
        """Whether the lease is over and nothing runs that would renew it."""
        return not self.ended and not self.running and self.expires_at <= now

    def next_event(self) -> int:
        """The sequence of the workflow's next event."""
        self.events += 1
        return self.events - 1

    def tool_news(self, tool: str, call_id: str, started: bool) -> bool:
        """Notes that a tool call has started or finished; tells whether that was not known."""
        call = (tool, call_id)
        if self._tools.get(call) is started:
            return False
        self._tools[call] = started
        self._tools.move_to_end(call)
        if len(self._tools) > _MAX_TOOL_CALLS:
            self._tools.popitem(last=False)
        return True


class Sessions:
    """Every open workflow by its id, and by when its lease ends."""

    def __init__(self, clock: Clock, max_workflows: int) -> None:
        self._clock = clock
        self._max = max_workflows
        self._sessions: dict[str, Session] = {}
        # One entry a session. Renewing leaves the entry where it is: it is looked at again when it would have ended,
        # so that a call costs nothing here.
        self._leases: list[tuple[float, int, Session]] = []
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, workflow_id: str) -> Session | None:
        """The open workflow of that id, its lease renewed."""
        session = self._sessions.get(workflow_id)
        if session is not None:
            session.renewed_at = self._clock.now()
        return session

    def add(self, session: Session) -> None:
        """Raises:
        ResourceExhausted: too many workflows are open.
        """
        if len(self._sessions) >= self._max:
            raise ResourceExhausted(f"{self._max} workflows are open already")
        self._sessions[session.id] = session
        heapq.heappush(self._leases, (session.expires_at, next(self._serial), session))

    def remove(self, session: Session) -> None:
        """Takes an ended workflow out."""
        session.ended = True
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        if len(self._leases) > 2 * len(self._sessions) + 64:
            self._leases = [entry for entry in self._leases if not entry[2].ended]
            heapq.heapify(self._leases)

    def expired(self) -> tuple[list[Session], list[Session]]:
        """Workflows whose lease is over: those that are silent, and those that run a step, whose lease starts anew."""
        now = self._clock.now()
        silent: list[Session] = []
        busy: list[Session] = []
        due: list[tuple[float, int, Session]] = []
        while self._leases and self._leases[0][0] <= now:
            due.append(heapq.heappop(self._leases))
        # Pushed back only now: a lease too short to move the clock would be due again at once.
        for _, serial, session in due:
            if session.ended:
                continue
            if session.expires_at <= now:
                (busy if session.running else silent).append(session)
            if session.running:
                session.renewed_at = now
            heapq.heappush(
                self._leases, (session.expires_at if session.expires_at > now else now + session.lease_s, serial, session)
            )
        return silent, busy
