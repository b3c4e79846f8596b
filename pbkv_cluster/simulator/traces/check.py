"""Everything that is wrong with a trace, at once: where the readers stop at the first error, this goes on to the end."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pbkv_cluster.simulator.traces.fields import MAX_TOKENS, FieldError, Fields, bounded_list
from pbkv_cluster.simulator.traces.files import Kind, kind_of
from pbkv_cluster.simulator.traces.format import LINE_FIELDS, SEGMENT_FIELDS, FieldSpec
from pbkv_cluster.simulator.traces.serving_traces import read_request, read_session
from pbkv_cluster.simulator.traces.step_traces import (
    LineOrder,
    TraceError,
    TraceWorkflow,
    count_unknown,
    read_lines,
    read_record,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    line: int  # 0: the file as a whole
    text: str  # names the field

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


class TraceCheck:
    """Checks one file; iterate over `problems` once, then look at the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = 0
        self.workflows: set[str] = set()
        self.steps = 0
        self.unknown: Counter[str] = Counter()  # fields that the format does not have, by name: they are ignored

    def problems(self) -> Iterator[Problem]:
        """Problems in the order of the lines. In a step trace all of a line, in other formats the first of each line."""
        try:
            kind = kind_of(self._path)
            order = LineOrder()
            for number, line in read_lines(self._path):
                self.lines += 1
                try:
                    fields = Fields(json.loads(line))
                except FieldError as error:
                    yield Problem(number, str(error))
                except (ValueError, RecursionError) as error:
                    yield Problem(number, f"not a line of JSON: {error}")
                else:
                    yield from (Problem(number, text) for text in self._of_line(kind, fields, number, order))
        except TraceError as error:
            yield Problem(0, str(error))
            return
        if not self.lines:
            yield Problem(0, f"{self._path}: holds no lines")

    def _of_line(self, kind: Kind, fields: Fields, number: int, order: LineOrder) -> Iterator[str]:
        match kind:
            case Kind.STEPS:
                yield from self._of_step(fields, number, order)
            case Kind.SESSIONS:
                yield from self._of_other(lambda: read_session(fields, ""))
            case Kind.REQUESTS:
                yield from self._of_other(lambda: read_request(fields, "", number).workflow)

    def _of_step(self, fields: Fields, number: int, order: LineOrder) -> Iterator[str]:
        count_unknown(fields, self.unknown)
        found = list(_wrong_fields(fields))
        if not found:
            try:
                record = read_record(fields, number)
            except FieldError as error:
                found = [str(error)]
        if found:
            yield from found
            try:  # so that the lines after it are not blamed for it
                order.pass_over(fields.text("workflow_id"), fields.count("step", MAX_TOKENS))
            except FieldError:
                return  # said already
            return
        self.steps += 1
        self.workflows.add(record.workflow)
        if problem := order.problem(record):
            yield problem

    def _of_other(self, read: Callable[[], TraceWorkflow]) -> Iterator[str]:
        try:
            workflow = read()
        except FieldError as error:
            yield str(error)
            return
        self.workflows.add(workflow.id)
        self.steps += len(workflow.steps)


def _wrong_fields(fields: Fields) -> Iterator[str]:
    """The problems of each field of a step on its own, and of the fields of its segments."""
    yield from _problems((spec for spec in LINE_FIELDS if spec.name != "prompt_segments"), fields)
    if "prompt_segments" not in fields.value:
        yield "prompt_segments: is missing"
        return
    try:
        segments = bounded_list(fields.path("prompt_segments"), fields.value["prompt_segments"])
    except FieldError as error:
        yield str(error)
        return
    for position, value in enumerate(segments):
        try:
            segment = Fields(value, f"prompt_segments[{position}].")
        except FieldError as error:
            yield str(error)
            continue
        yield from _problems(SEGMENT_FIELDS, segment)


def _problems(specs: Iterable[FieldSpec], fields: Fields) -> Iterator[str]:
    for spec in specs:
        try:
            spec.check(fields)
        except FieldError as error:
            yield str(error)
