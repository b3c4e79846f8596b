"""Reads step traces: one JSON object per model call, plain or gzipped, with a workflow's lines together and in order.

A trace contains no text. A prompt is a list of segments. Equal segment ids mean equal text, across all traces.
"""

import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.text.words import WORD_BITS
from pbkv_cluster.simulator.traces.fields import MAX_TEXT_BYTES, MAX_TOKENS, FieldError, Fields
from pbkv_cluster.simulator.traces.format import LINE_NAMES, SEGMENT_NAMES, SegmentKind, segment_kind

__all__ = ["Segment", "SegmentKind", "TraceError", "TraceStep", "TraceWorkflow", "read_lines", "read_workflows"]

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 << 20  # a session of a thousand requests takes a tenth of it
MAX_STEPS = 1 << 16  # of one workflow
_MAX_UNKNOWN_FIELDS = 16  # that are named in a warning


class TraceError(PbkvError):
    """A trace cannot be used. The message names the file and, where known, the line and the field."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt tokens, determined by `id`: a shorter segment with the same id is a prefix of a longer one."""

    kind: SegmentKind
    id: str
    tokens: int
    pseudo: bool = False  # nobody knows its text, so that what it shares with other segments is unknown


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One model call and the pause after it."""

    agent: str
    prompt: tuple[Segment, ...]
    output_id: str  # segment id of the reply where a later prompt contains it
    output_tokens: int
    call_site: str = ""  # prompt template of the agent; "" if not logged
    tool: str = ""  # tool or action after the call; "" if not logged
    pause_s: float = 0.0  # seconds until the next call; 0 if not logged
    task_words: tuple[int, ...] = ()  # hashed words of the workflow's task, in the first step
    words: tuple[int, ...] = ()  # hashed words of the reply's beginning, if logged

    @property
    def prompt_tokens(self) -> int:
        return sum(segment.tokens for segment in self.prompt)


@dataclass(frozen=True, slots=True)
class TraceWorkflow:
    """One run of an agent application, from its first step to its last."""

    id: str
    workload: str
    steps: tuple[TraceStep, ...]
    group: str = ""  # the task, which several runs can share; by default the run's own id
    arrival_s: float | None = None  # seconds from a moment that is the same for the whole trace; None: not logged

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)


def read_workflows(path: Path) -> Iterator[TraceWorkflow]:
    """The workflows of a trace, each as soon as all its lines have been read.

    Args:
        path: a `.jsonl` file, gzipped if its name ends in `.gz`.

    Raises:
        TraceError: the file cannot be read, or a line breaks the format. Workflows before that line have been returned.

    Fields that the format does not have are ignored, and named in a warning at the end: a misspelt optional field would
    otherwise be missed by nobody.
    """
    order = LineOrder()
    empty = True
    for _, records in groupby(_records(path), key=lambda record: record.workflow):
        steps: list[TraceStep] = []
        first: Record | None = None
        for record in records:
            if problem := order.problem(record):
                raise TraceError(f"{path}, line {record.line}: {problem}")
            first = first or record
            steps.append(record.step)
        assert first is not None, "a group has at least one line"
        empty = False
        yield TraceWorkflow(first.workflow, first.workload, tuple(steps), first.group, first.arrival_s)
    if empty:
        raise TraceError(f"{path}: holds no steps")


class Record(NamedTuple):
    """One line."""

    line: int
    workflow: str
    workload: str
    group: str
    position: int
    arrival_s: float | None
    step: TraceStep


class LineOrder:
    """Checks that lines follow each other as they must: those of a workflow together, in the order of its steps."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._workflow = ""  # of the line before
        self._next = 0
        self._first: Record | None = None  # line of that workflow; None: it could not be read

    def problem(self, record: Record) -> str:
        """What is wrong with a line where it stands; empty: nothing. It is the line before the next one in any case."""
        if problem := self._place(record.workflow, record.position):
            return problem
        if record.position == 0:
            self._first = record
        first = self._first
        if first is None or first is record:
            return ""
        if record.workload != first.workload:
            return f"workload: must be {first.workload!r}, as in the workflow's first line, got {record.workload!r}"
        if record.group not in ("", first.group):
            return f"task_group: must be {first.group!r}, as in the workflow's first line, got {record.group!r}"
        return ""

    def pass_over(self, workflow: str, position: int) -> None:
        """Notes a line that is wrong in itself."""
        self._place(workflow, position)

    def _place(self, workflow: str, position: int) -> str:
        expected = self._next
        returns = workflow != self._workflow and workflow in self._seen
        if workflow != self._workflow:
            self._seen.add(workflow)
            self._workflow, self._first, expected = workflow, None, 0
        self._next = position + 1
        if returns:
            return f"workflow_id: {workflow!r} goes on after another workflow; its lines must stand together"
        if position != expected:
            return f"step: must be {expected}, the next of its workflow, got {position}"
        if expected == MAX_STEPS:
            return f"step: a workflow may have at most {MAX_STEPS} steps"
        return ""


def _records(path: Path) -> Iterator[Record]:
    unknown: Counter[str] = Counter()
    for number, line in read_lines(path):
        try:
            fields = Fields(json.loads(line))
            count_unknown(fields, unknown)
            record = read_record(fields, number)
        except FieldError as error:
            raise TraceError(f"{path}, line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}, line {number}: not a line of JSON: {error}") from error
        yield record
    if unknown:
        named = ", ".join(f"{name} ({times:,} times)" for name, times in unknown.most_common())
        log.warning("%s: fields that this format does not have were ignored: %s", path, named)


def read_record(fields: Fields, line: int) -> Record:
    """One line, apart from its place among others.

    Raises:
        FieldError: it breaks the format.
    """
    position = fields.count("step", MAX_TOKENS)
    workflow, workload = fields.text("workflow_id"), fields.text("workload")
    group, arrival_s = fields.optional_text("task_group"), fields.optional_time("arrival_s")
    return Record(line, workflow, workload, group, position, arrival_s, _step(fields, position))


def count_unknown(fields: Fields, unknown: Counter[str]) -> None:
    """Counts the fields of a line that the format does not have, by name; a bounded number of names."""
    for name in fields.value.keys() - LINE_NAMES:
        _count(unknown, name)
    segments = fields.value.get("prompt_segments")
    for segment in segments if isinstance(segments, list) else ():
        if isinstance(segment, dict):
            for name in segment.keys() - SEGMENT_NAMES:
                _count(unknown, f"prompt_segments[].{name}")


def _count(unknown: Counter[str], name: str) -> None:
    if name in unknown or len(unknown) < _MAX_UNKNOWN_FIELDS:
        unknown[name if len(name) <= MAX_TEXT_BYTES else name[:MAX_TEXT_BYTES]] += 1


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a plain or gzipped file, except blank ones, with their numbers from 1.

    Raises:
        TraceError: the file cannot be read, or a line is longer than `MAX_LINE_BYTES`; of that one no more is read.
    """
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise TraceError(
                        f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes; is it one JSON object per line?"
                    )
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{path}, after line {number}: the gzip stream is cut short or damaged: {error}") from error
    except gzip.BadGzipFile as error:
        raise TraceError(f"{path}, after line {number}: not a gzip file, or a damaged one: {error}") from error
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _step(fields: Fields, position: int) -> TraceStep:
    prompt = tuple(_segment(entry) for entry in fields.objects("prompt_segments"))
    tokens = sum(segment.tokens for segment in prompt)
    if not tokens:
        raise FieldError("prompt_segments", "must hold at least one token")
    if tokens > MAX_TOKENS:
        raise FieldError("prompt_segments", f"must hold at most {MAX_TOKENS} tokens in all, hold {tokens}")
    declared = fields.count("prompt_tokens", MAX_TOKENS)
    if declared != tokens:
        raise FieldError("prompt_tokens", f"is {declared}, but the segments hold {tokens}")
    return TraceStep(
        agent=fields.text("agent"),
        prompt=prompt,
        output_id=fields.text("output_id"),
        output_tokens=fields.count("output_tokens", MAX_TOKENS),
        call_site=fields.optional_text("phase"),
        tool=fields.optional_text("action"),
        pause_s=fields.optional_seconds("tool_s"),
        task_words=fields.optional_numbers("task_words", 1 << WORD_BITS) if not position else (),
        words=fields.optional_numbers("words", 1 << WORD_BITS),
    )


def _segment(fields: Fields) -> Segment:
    return Segment(segment_kind(fields), fields.text("id"), fields.count("tokens", MAX_TOKENS), fields.optional_flag("pseudo"))
