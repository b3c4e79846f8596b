"""Records of a file: JSON lines, one JSON list, or CSV; plain or gzipped. Bounded, and with the place of each for errors."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pbkv_cluster.simulator.traces.fields import MAX_TIME_S
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError, read_lines

LIST_BYTES_MAX = 256 << 20  # of a file that is one JSON value, which is read as a whole


class Record(NamedTuple):
    """One record, and where it stands."""

    place: str
    value: dict[str, Any]


def json_records(path: Path, problems: RecordProblems | None = None) -> Iterator[Record]:
    """The objects of a file: one in each line, or a list of them, or one object over several lines.

    Raises:
        TraceError: it cannot be read, is too large, or is no such file; or a record is wrong and `problems` is None.
    """
    first = _beginning(path)
    if first.startswith(b"[") or not _is_whole(first):
        yield from _of_value(path, problems)
    else:
        yield from line_records(path, problems)


def line_records(path: Path, problems: RecordProblems | None = None) -> Iterator[Record]:
    """The objects of a file with one in each line, which may be a pipe.

    Raises:
        TraceError: it cannot be read; or a line is wrong and `problems` is None.
    """
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        with noted(problems):
            yield Record(place, _object(_loaded(line, place), place))


def _loaded(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{place}: not a line of JSON: {error}") from error


def csv_records(path: Path) -> Iterator[Record]:
    """The rows of a CSV file with a header.

    Raises:
        TraceError: it cannot be read, or is no CSV.
    """
    lines = ((number, line) for number, line in read_lines(path))
    at = 0

    def text() -> Iterator[str]:
        nonlocal at
        for at, line in lines:  # noqa: B007  # for the place of a row
            yield line.decode("utf-8-sig", errors="replace")

    try:
        for row in csv.DictReader(text()):
            yield Record(f"{path}, line {at}", {str(name): value for name, value in row.items() if name is not None})
    except csv.Error as error:
        raise TraceError(f"{path}, line {at}: not CSV: {error}") from error


def seconds_of(value: Any, place: str, field: str) -> float:
    """A time in seconds since 1970, which a trace can hold: a number, or a date and time in ISO 8601.

    Raises:
        TraceError: it is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_TIME_S:
        return float(value)
    if isinstance(value, str):
        text = value.strip().replace("Z", "+00:00")
        head, dot, tail = text.partition(".")
        digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
        if dot:  # logs have more digits than a datetime can hold
            text = f"{head}.{digits[:6].ljust(6, '0')}{tail[len(digits) :]}"
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
            if 0 <= seconds <= MAX_TIME_S:
                return seconds
    raise TraceError(f"{place}: {field}: must be a time, got {str(value)[:60]!r}")


def count_of(value: Any, place: str, field: str) -> int:
    """A number of tokens, which may be text.

    Raises:
        TraceError: it is none.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool) or not 0 <= number < 1 << 24:
        raise TraceError(f"{place}: {field}: must be a number of tokens, got {str(value)[:60]!r}")
    return number


def _beginning(path: Path) -> bytes:
    for _, line in _first_lines(path):
        return line.strip()
    raise TraceError(f"{path}: holds no records")


def _first_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """As `read_lines`, but a first line beyond its bound may be a list: an export without line breaks."""
    try:
        yield from read_lines(path)
    except TraceError:
        if not _begins_a_list(path):
            raise
        yield 1, b"["


def _begins_a_list(path: Path) -> bool:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(1) == b"["
    except (OSError, EOFError, zlib.error):
        return False


def _is_whole(line: bytes) -> bool:
    """Whether a first line is a value of its own; if not, it begins one that goes on over several lines."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line not in (b"{", b"[") and not line.endswith((b"{", b"[", b","))
    return True


def _of_value(path: Path, problems: RecordProblems | None) -> Iterator[Record]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(LIST_BYTES_MAX + 1)
        if len(data) > LIST_BYTES_MAX:
            raise TraceError(f"{path}: is one JSON value of more than {LIST_BYTES_MAX:,} bytes; write one object per line")
        value = json.loads(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not JSON: {error}") from error
    if isinstance(value, dict):
        value = next((value[name] for name in ("data", "observations", "spans") if isinstance(value.get(name), list)), [value])
    for number, entry in enumerate(value):
        place = f"{path}, record {number + 1}"
        with noted(problems):
            yield Record(place, _object(entry, place))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(f"{place}: must be an object, got {type(value).__name__}")
    return value
