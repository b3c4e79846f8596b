"""What other commands on this machine know of a `pbkv serve`: a file in its state folder, which counts while that is locked."""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from pbkv_cluster.cluster.startup.private_file import write_private
from pbkv_cluster.cluster.startup.state_dir import PREFIX, is_locked
from pbkv_cluster.core.errors import InvalidArgument, NotFound

_FILE = "cluster.json"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One running `pbkv serve`."""

    name: str  # of the cluster
    pid: int
    pid_namespace: int  # in another one, the number is another process's
    started_at: float  # seconds since the epoch
    log_path: str  # what it prints goes there; empty: to its terminal
    gateway: str = ""  # host:port; empty: it has not started yet
    redis_url: str = field(default="", repr=False)  # with the password
    folder: str = ""

    @classmethod
    def of_this_process(cls, name: str, log_path: str) -> Self:
        """Of a cluster that is about to start."""
        return cls(name, os.getpid(), _pid_namespace(), time.time(), log_path)

    @property
    def runs(self) -> bool:
        """Whether its process has not ended."""
        return is_locked(Path(self.folder))

    def write(self, folder: Path) -> Self:
        """Writes or replaces the file of a state folder that is ours. Returns the record with its folder."""
        record = replace(self, folder=str(folder))
        new = folder / f".{_FILE}.new"
        new.unlink(missing_ok=True)
        write_private(new, json.dumps(asdict(record))).replace(folder / _FILE)
        return record


def running() -> list[RunRecord]:
    """Every `pbkv serve` of this user that runs on this machine, the oldest first. Those in other containers are not ours."""
    records = map(_read, Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    found = [record for record in records if record is not None and record.runs]
    return sorted(found, key=lambda record: record.started_at)


def find(name: str, pid: int = 0) -> RunRecord:
    """The one that runs a cluster.

    Args:
        name: of the cluster; empty: there is only one.
        pid: of its process; 0: any.

    Raises:
        NotFound: there is none.
        InvalidArgument: there are several.
    """
    everything = running()
    found = [each for each in everything if name in ("", each.name) and pid in (0, each.pid)]
    if not found:
        others = f"; running: {', '.join(sorted({each.name for each in everything}))}" if everything else ""
        what = f"no cluster {name!r}" if name else "no cluster"
        raise NotFound(f"{what}{f' of process {pid}' if pid else ''} of this user runs on this machine{others}")
    if len(found) > 1:
        listed = ", ".join(f"{each.name} (process {each.pid})" for each in found)
        raise InvalidArgument("NAME", f"several clusters run here: {listed}; give a name, or --pid where names are alike")
    return found[0]


def _read(folder: Path) -> RunRecord | None:
    """The record in a folder of ours; None if there is none."""
    path = folder / _FILE
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or path.stat().st_uid != os.getuid():
            return None
        record = RunRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.pid_namespace == _pid_namespace() else None


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
