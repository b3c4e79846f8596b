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
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.text.words import WORD_BITS
from pbkv_cluster.simulator.traces.fields import MAX_TEXT_BYTES, FieldError, Fields

log = logging.getLogger(__name__)

# Of one prompt or reply: above any context window, but low enough that a corrupt count cannot fill the memory.
MAX_TOKENS = 16 << 20
MAX_LINE_BYTES = 16 << 20  # a session of a thousand requests takes a tenth of it
MAX_STEPS = 1 << 16  # of one workflow
_MAX_UNKNOWN_FIELDS = 16  # that are named in a warning

# Fields of a line and of a segment; those that nothing reads tell how the trace was made.
_LINE_FIELDS = frozenset(
    (
        *("workflow_id", "workload", "task_group", "task_words", "step", "agent", "phase", "action", "words"),
        *("prompt_segments", "prompt_tokens", "output_tokens", "output_id", "tool_s", "start_s", "end_s"),
        *("logged_prompt_tokens", "logged_output_tokens"),
    )
)
_SEGMENT_FIELDS = frozenset(("kind", "id", "tokens", "pseudo"))


class TraceError(PbkvError):
    """A trace cannot be used. The message names the file and, where known, the line and the field."""


class SegmentKind(StrEnum):
    """Role of a segment in its prompt."""

    SYSTEM = "system"
    SHARED = "shared"
    HISTORY = "history"
    TOOL = "tool"
    TASK = "task"


_KINDS = {kind.value: kind for kind in SegmentKind}


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt tokens, determined by `id`: a shorter segment with the same id is a prefix of a longer one."""

    kind: SegmentKind
    id: str
    tokens: int


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
    seen: set[str] = set()
    for workflow, records in groupby(_records(path), key=lambda record: record.workflow):
        steps: list[TraceStep] = []
        workload = group = ""
        for record in records:
            if workflow in seen:
                problem = f"workflow_id: {workflow!r} goes on after another workflow; its lines must stand together"
                raise TraceError(f"{path}, line {record.line}: {problem}")
            if record.position != len(steps):
                problem = f"step: must be {len(steps)}, the next of its workflow, got {record.position}"
                raise TraceError(f"{path}, line {record.line}: {problem}")
            if len(steps) == MAX_STEPS:
                raise TraceError(f"{path}, line {record.line}: step: a workflow may have at most {MAX_STEPS} steps")
            if steps and record.group not in ("", group):
                problem = f"task_group: must be {group!r}, as in the workflow's first line, got {record.group!r}"
                raise TraceError(f"{path}, line {record.line}: {problem}")
            workload, group = record.workload, record.group if not steps else group
            steps.append(record.step)
        seen.add(workflow)
        yield TraceWorkflow(workflow, workload, tuple(steps), group)
    if not seen:
        raise TraceError(f"{path}: holds no steps")


class _Record(NamedTuple):
    line: int
    workflow: str
    workload: str
    group: str
    position: int
    step: TraceStep


def _records(path: Path) -> Iterator[_Record]:
    unknown: Counter[str] = Counter()
    for number, line in read_lines(path):
        try:
            fields = Fields(json.loads(line))
            _count_unknown(fields, unknown)
            position = fields.count("step", MAX_TOKENS)
            workflow, workload = fields.text("workflow_id"), fields.text("workload")
            record = _Record(number, workflow, workload, fields.optional_text("task_group"), position, _step(fields, position))
        except FieldError as error:
            raise TraceError(f"{path}, line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}, line {number}: not a line of JSON: {error}") from error
        yield record
    if unknown:
        named = ", ".join(f"{name} ({times:,} times)" for name, times in unknown.most_common(_MAX_UNKNOWN_FIELDS))
        log.warning("%s: fields that this format does not have were ignored: %s", path, named)


def _count_unknown(fields: Fields, unknown: Counter[str]) -> None:
    for name in fields.value.keys() - _LINE_FIELDS:
        _count(unknown, name)
    segments = fields.value.get("prompt_segments")
    for segment in segments if isinstance(segments, list) else ():
        if isinstance(segment, dict):
            for name in segment.keys() - _SEGMENT_FIELDS:
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
    kind = _KINDS.get(fields.text("kind"))
    if kind is None:
        raise FieldError(fields.path("kind"), f"{fields.text('kind')!r} is unknown; must be one of {', '.join(_KINDS)}")
    return Segment(kind, fields.text("id"), fields.count("tokens", MAX_TOKENS))
