"""Temporary folders for state that outlives a member but not its cluster.

A folder belongs to the process that has it locked. The kernel frees the lock when that process ends, however it does, and the
next cluster that starts removes every folder that is not locked.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

log = logging.getLogger(__name__)

PREFIX = "pbkv-state-"


class StateDir:
    """A temporary folder that is removed by `close`, or after the death of this process by the next `create`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock  # file descriptor of the folder, which no child process inherits

    @classmethod
    def create(cls) -> Self:
        """Makes a folder, and removes those of processes that have ended."""
        temporary = Path(tempfile.gettempdir())
        for path in temporary.glob(f"{PREFIX}*"):
            lock = _try_lock(path)
            if lock is not None:
                log.info("removing %s, left by a process that has ended", path)
                cls(path, lock).close()
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary))
            lock = _try_lock(path)
            if lock is not None:
                return cls(path, lock)
            # Another process has taken it for an abandoned one, before it was locked.

    def close(self) -> None:
        """Removes the folder. May be called again."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def is_locked(path: Path) -> bool:
    """Whether a folder belongs to a process that runs."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given up at once
    except OSError:
        return True
    finally:
        os.close(folder)
    return False


def _try_lock(path: Path) -> int | None:
    """Locks a folder. Returns its file descriptor, or None if another process has locked or removed it, or owns it."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(folder), os.stat(path)):
            return folder
    except OSError:
        pass
    os.close(folder)
    return None
