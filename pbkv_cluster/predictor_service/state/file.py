"""Files of what a predictor has learnt: one line of JSON that describes the payload, then the payload."""

import json
import os
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import PbkvError

_FORMAT = "pbkv-predictor-state"
_MAX_HEADER_BYTES = 4096
_MAX_BYTES = 4 << 30


class StateRefused(PbkvError):
    """A saved state cannot be used; the message says which one and why."""


def access_path(path: Path) -> Path:
    """The file of the access model that belongs to the state of a predictor in `path`."""
    return path.with_name(f"{path.name}.access")


def write_state(path: Path, kind: str, version: int, payload: bytes) -> None:
    """Writes a state. A reader finds either the old file or the new one, even after a crash.

    Raises:
        OSError: the file cannot be written; what was there before is unchanged.
    """
    header = {"format": _FORMAT, "kind": kind, "version": version, "digest": blake2b(payload).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")  # always the same name, so that the remains of a killed process are overwritten
    try:
        with new.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n" + payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # makes the renaming durable
    finally:
        os.close(directory)


def read_state(path: Path, kind: str, version: int) -> bytes:
    """The payload of a file that `write_state` wrote for the same kind and version.

    Raises:
        StateRefused: it is something else, or damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header = _header(path, file.readline(_MAX_HEADER_BYTES))
        _check_header(path, header, kind, version)
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise StateRefused(f"{path} is larger than {_MAX_BYTES:,} bytes, which no predictor has written")
        payload = file.read()
    if header.get("digest") != blake2b(payload).hexdigest():
        raise StateRefused(f"{path} is damaged: its {len(payload)} bytes of state do not match their digest")
    return payload


def set_aside(path: Path) -> Path:
    """Renames a file to end in `.refused`, and in a number after the first. None that was set aside before is overwritten.

    Returns:
        The new path.

    Raises:
        OSError: it cannot be renamed.
    """
    for number in count(1):
        aside = path.with_name(f"{path.name}.refused" if number == 1 else f"{path.name}.refused-{number}")
        if not aside.exists():
            path.rename(aside)
            return aside
    raise AssertionError("there is always another number")


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StateRefused(f"{path} is not a predictor's state: its first line is not JSON") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise StateRefused(f"{path} is not a predictor's state: its first line does not say {_FORMAT}")
    return header


def _check_header(path: Path, header: dict[str, Any], kind: str, version: int) -> None:
    if header.get("kind") != kind:
        raise StateRefused(f"{path} holds the state of the predictor {header.get('kind')!r}, not of {kind!r}")
    if header.get("version") != version:
        raise StateRefused(f"{path} has version {header.get('version')!r} of the {kind} state; this program reads {version}")
