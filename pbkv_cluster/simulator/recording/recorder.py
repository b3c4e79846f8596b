"""Open workflows of a recording. Each is written when it has ended, or is cut when there is no room for all of them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from pbkv_cluster.simulator.recording.trace_file import TraceFile
from pbkv_cluster.simulator.traces.fields import MAX_PAUSE_S, MAX_TEXT_BYTES, MAX_TIME_S
from pbkv_cluster.simulator.traces.step_traces import MAX_STEPS, Segment, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.traces.writing import encoded, line_of

OPEN_BYTES = 256 << 20  # of the lines and last steps of all open workflows
_STEP_BYTES, _SEGMENT_BYTES, _TOKEN_ID_BYTES = 512, 192, 40  # that the last step takes in memory, about
UNNAMED = "unnamed"  # workload of workflows that have none


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step that has ended.

    Times are seconds since any moment that is the same for all steps. None is unknown, as is a time that a trace cannot hold.
    """

    agent: str
    prompt: tuple[Segment, ...]
    output_id: str
    output_tokens: int
    started_s: float | None
    ended_s: float | None
    call_site: str = ""
    available_tokens: int | None = None
    delivered_tokens: int | None = None
    prompt_token_ids: Sequence[int] | None = None
    output_token_ids: Sequence[int] | None = None

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        token_ids = len(self.prompt_token_ids or ()) + len(self.output_token_ids or ())
        return _STEP_BYTES + _SEGMENT_BYTES * len(self.prompt) + _TOKEN_ID_BYTES * token_ids


@dataclass(slots=True)
class _Open:
    """An open workflow: all its lines but the last step's, whose pause is not known yet."""

    name: str  # in the trace
    workload: str
    lines: list[bytes] = field(default_factory=list)
    size_bytes: int = 0  # with the last step's
    last: RecordedStep | None = None
    tool: str = ""
    heard_s: float | None = None  # when its last step ended; None: unknown
    cut: bool = False  # was written before its end: the rest is left out


class Recorder:
    """Takes steps, and writes workflows to a file."""

    def __init__(self, file: TraceFile, open_bytes: int = OPEN_BYTES) -> None:
        """Args:
        file: to write to; its owner closes it.
        open_bytes: of lines and last steps of open workflows.
        """
        self._file = file
        self._open_bytes = open_bytes
        self._size_bytes = 0
        self._workflows: OrderedDict[str, _Open] = OrderedDict()  # silent for longest first
        self.written = 0  # workflows
        self.steps = 0  # written
        self.cut = 0  # workflows that were written before their end
        self.full = False  # the file

    def step(self, workflow: str, workload: str, step: RecordedStep) -> None:
        """A step has ended. Of parallel steps, the one that ends first is first in the trace."""
        found = self._workflows.get(workflow)
        if found is None:
            found = self._workflows[workflow] = _Open(self._name(workflow), workload or UNNAMED)
        self._workflows.move_to_end(workflow)
        step = replace(step, started_s=_known(step.started_s), ended_s=_known(step.ended_s))
        found.heard_s = step.started_s if step.ended_s is None else step.ended_s
        if found.cut or self.full:
            return
        self._complete(found, step.started_s)
        found.last = step
        self._grow(found, step.size_bytes)
        if len(found.lines) + 1 >= MAX_STEPS:
            self._cut(found)
        while self._size_bytes > self._open_bytes:
            self._cut(next(each for each in self._workflows.values() if each.size_bytes))

    def tool(self, workflow: str, tool: str) -> None:
        """A workflow waits for a tool; the first one after a step counts."""
        found = self._workflows.get(workflow)
        if found is not None and found.last is not None:
            found.tool = found.tool or tool

    def end(self, workflow: str) -> None:
        """A workflow has ended."""
        found = self._workflows.pop(workflow, None)
        if found is not None and not found.cut:
            self._write(found)

    def end_silent(self, since_s: float) -> None:
        """Ends workflows whose last step ended at `since_s` or before, in order of arrival, up to the first that goes on."""
        while self._workflows:
            workflow, found = next(iter(self._workflows.items()))
            if found.heard_s is None or found.heard_s > since_s:
                return
            self.end(workflow)

    def end_all(self) -> None:
        """Nothing more comes: all open workflows have ended."""
        for workflow in list(self._workflows):
            self.end(workflow)

    def finish(self) -> None:
        """The recording ends: writes what is open as it is."""
        for each in self._workflows.values():
            if not each.cut:
                self.cut += 1
                self._write(each)
        self._workflows.clear()

    def _name(self, workflow: str) -> str:
        """The workflow's id, or another one if a workflow of this id is in the file already."""
        for number in count(1):
            suffix = f"~{number}" if number > 1 else ""
            name = workflow.encode()[: MAX_TEXT_BYTES - len(suffix)].decode(errors="ignore") + suffix
            if name not in self._file.workflows:
                return name
        raise AssertionError("numbers do not end")

    def _cut(self, each: _Open) -> None:
        self.cut += 1
        self._write(each)
        each.lines, each.last, each.cut = [], None, True

    def _complete(self, found: _Open, next_s: float | None) -> None:
        """Makes a line of the last step, now that it is known when the next one starts; None: there is none."""
        last = found.last
        if last is None:
            return
        pause = 0.0 if next_s is None or last.ended_s is None else round(max(0.0, next_s - last.ended_s), 6)
        if pause > MAX_PAUSE_S:  # thirty years: one of the two times is not of this clock
            pause = 0.0
        step = TraceStep(last.agent, last.prompt, last.output_id, last.output_tokens, last.call_site, found.tool, pause)
        arrival_s = last.started_s if not found.lines else None
        made = TraceWorkflow(found.name, found.workload, (step,), arrival_s=arrival_s and round(arrival_s, 6))
        line = line_of(made, 0) | {"step": len(found.lines)}
        for key in ("available_tokens", "delivered_tokens", "prompt_token_ids", "output_token_ids"):
            if (value := getattr(last, key)) is not None:
                line[key] = value
        found.lines.append(encoded(line))
        self._grow(found, len(found.lines[-1]) - last.size_bytes)
        found.last, found.tool = None, ""

    def _grow(self, found: _Open, size_bytes: int) -> None:
        found.size_bytes += size_bytes
        self._size_bytes += size_bytes

    def _write(self, found: _Open) -> None:
        self._complete(found, None)
        self._grow(found, -found.size_bytes)
        if not found.lines or self.full:
            return
        if not self._file.write(found.name, b"".join(found.lines)):
            self.full = True
            return
        self.written += 1
        self.steps += len(found.lines)


def _known(time_s: float | None) -> float | None:
    """A time, if a trace can hold it."""
    return time_s if time_s is not None and 0.0 <= time_s <= MAX_TIME_S else None
