"""The events of each open workflow, kept so that a predictor that has restarted can be told them again.

What prompts and outputs contained is most of an event, and forecasts need that of the first and the latest steps alone. Of the
steps in between, agents, call sites, lengths and tool calls are kept.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from pbkv_cluster.rpc.v1 import predictor_pb2

HISTORY_BYTES = 64 << 20  # of all open workflows together
WORKFLOW_BYTES = 256 << 10  # of one; its first event is kept beyond
_FIRST_STEPS = 3  # by which a workflow's workload is recognised
_LATEST_STEPS = 4  # the longest that an outcome is waited for by default, and one more
_CONTENT = ("pieces", "words", "hidden")


class _History:
    """The events of one workflow."""

    __slots__ = ("_latest", "_shortened", "_steps", "events", "size_bytes")

    def __init__(self) -> None:
        self.events: list[predictor_pb2.WorkflowEvent] = []
        self.size_bytes = 0
        self._steps = 0  # that have started
        self._latest: deque[int] = deque()  # positions of the starts of steps whose content is kept
        self._shortened = 0  # events up to this position have lost their content, as far as they do

    def add(self, event: predictor_pb2.WorkflowEvent) -> None:
        if event.kind == predictor_pb2.EVENT_KIND_STEP_STARTED:
            self._steps += 1
            if self._steps > _FIRST_STEPS:
                self._latest.append(len(self.events))
        self.events.append(event)
        self.size_bytes += event.ByteSize()
        if len(self._latest) > _LATEST_STEPS:
            self._shorten()
        if self.size_bytes > WORKFLOW_BYTES:
            self._drop_oldest()

    def _shorten(self) -> None:
        """Takes the content out of the oldest of the latest steps."""
        start = max(self._latest.popleft(), self._shortened)
        self._shortened = self._latest[0]
        for at in range(start, self._shortened):
            event = self.events[at]
            if any(len(getattr(event, name)) for name in _CONTENT):
                short = predictor_pb2.WorkflowEvent()  # the event itself may still wait to be sent
                short.CopyFrom(event)
                for name in _CONTENT:
                    short.ClearField(name)
                self.size_bytes += short.ByteSize() - event.ByteSize()
                self.events[at] = short

    def _drop_oldest(self) -> None:
        """Drops a half of the events after the first one, which holds the step graph. The predictor sees the gap."""
        dropped = self.events[1 : 1 + len(self.events) // 2]
        del self.events[1 : 1 + len(dropped)]
        self.size_bytes -= sum(event.ByteSize() for event in dropped)
        self._latest = deque(at - len(dropped) for at in self._latest if at > len(dropped))
        self._shortened = max(self._shortened - len(dropped), 0)


class Histories:
    """Histories of open workflows. Beyond a bound, those of the workflows that have been silent for longest are dropped."""

    def __init__(self, capacity_bytes: int = HISTORY_BYTES) -> None:
        """Args:
        capacity_bytes: of all events together, on the wire.
        """
        self._capacity_bytes = capacity_bytes
        self._histories: OrderedDict[str, _History] = OrderedDict()  # silent for longest first
        self.size_bytes = 0

    def __len__(self) -> int:
        """Workflows."""
        return len(self._histories)

    def add(self, event: predictor_pb2.WorkflowEvent) -> None:
        """Adds the latest event of a workflow. With its end, its history is over."""
        if event.kind == predictor_pb2.EVENT_KIND_WORKFLOW_ENDED:
            self.drop(event.workflow_id)
            return
        history = self._histories.setdefault(event.workflow_id, _History())
        self._histories.move_to_end(event.workflow_id)
        self.size_bytes -= history.size_bytes
        history.add(event)
        self.size_bytes += history.size_bytes
        while self.size_bytes > self._capacity_bytes:
            self.drop(next(iter(self._histories)))

    def drop(self, workflow: str) -> None:
        """Forgets a workflow."""
        if (history := self._histories.pop(workflow, None)) is not None:
            self.size_bytes -= history.size_bytes

    def of(self, workflow: str) -> Sequence[predictor_pb2.WorkflowEvent]:
        """The events of one workflow, in order; none if it is not known."""
        history = self._histories.get(workflow)
        return () if history is None else history.events

    def events(self) -> Iterator[predictor_pb2.WorkflowEvent]:
        """All events, those of each workflow in order."""
        for history in self._histories.values():
            yield from history.events
