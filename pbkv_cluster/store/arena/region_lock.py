"""Locks on regions of the arena's file, held by the process that has the region mapped for as long as it lives.

A region's time to live says how long the host store waits for a renewal; the lock says whether the worker has really ended. A
worker that is merely stalled keeps its region, since its bytes would otherwise change while it reads them.
"""

import fcntl
import os
import struct


def try_lock(file: int, offset: int, size: int) -> bool:
    """Locks a region for an open file (not for the process); False if another open file has it locked."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, offset, size))
    except BlockingIOError:
        return False
    return True


def unlock(file: int, offset: int, size: int) -> None:
    """Releases a lock; closing the file does too."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, offset, size))


def is_locked(file: int, offset: int, size: int) -> bool:
    """Whether another open file has a region locked. Who looks locks nothing, and is in nobody's way."""
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, offset, size))
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK


def _flock(kind: int, offset: int, size: int) -> bytes:
    """`struct flock` of fcntl(2), whose process id must be 0 for locks of open files."""
    return struct.pack("hhqqi", kind, os.SEEK_SET, offset, size, 0)
