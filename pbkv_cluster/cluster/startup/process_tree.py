"""The processes below another one, from /proc."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class ProcessId(NamedTuple):
    """One process: the number alone may be another's a moment after its end."""

    pid: int
    started: int  # in the kernel's ticks since the machine's start


class Process(NamedTuple):
    id: ProcessId
    parent: int
    name: str
    ended: bool  # a zombie, which only waits for its parent


def processes() -> Iterator[Process]:
    """Those that this process may see."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        if (process := _read(path)) is not None:
            yield process


def descendants(pid: int) -> list[ProcessId]:
    """The processes below `pid` that run now, at any depth."""
    children: dict[int, list[Process]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process)
    found: list[ProcessId] = []
    below = [pid]
    while below:
        for child in children.get(below.pop(), ()):
            found.append(child.id)
            below.append(child.id.pid)
    return found


def find(pid: int) -> ProcessId | None:
    """The process with that number now."""
    process = _read(Path(f"/proc/{pid}/stat"))
    return None if process is None else process.id


def send(process: ProcessId, number: signal.Signals) -> None:
    """Sends a signal to a process unless it has ended. Never reaches another one that has its number."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if runs(process):  # then the handle is of this one
            signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)


def runs(process: ProcessId) -> bool:
    """Whether it has not ended."""
    present = _read(Path(f"/proc/{process.pid}/stat"))
    return present is not None and present.id == process and not present.ended


def _read(path: Path) -> Process | None:
    try:
        text = path.read_text(errors="replace")
    except OSError:  # it has ended
        return None
    pid, _, rest = text.partition(" (")
    name, _, fields = rest.rpartition(") ")
    values = fields.split()
    return Process(ProcessId(int(pid), int(values[19])), int(values[1]), name, values[0] in "ZX")
