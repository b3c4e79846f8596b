"""Locks on regions of the arena's file, held by whoever has the region mapped, for as long as its process lives.

A lease tells a host store how long to wait for a word; the lock tells whether the worker is really gone. One that merely
stalled keeps its region, since its bytes would otherwise change under it.
"""

import fcntl
import os
import struct


def try_lock(file: int, offset: int, size: int) -> bool:
    """Locks a region for the open file `file`, not for the process; False if another open file has it locked."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, offset, size))
    except BlockingIOError:
        return False
    return True


def unlock(file: int, offset: int, size: int) -> None:
    """Gives a lock back; closing the file does too."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, offset, size))


def _flock(kind: int, offset: int, size: int) -> bytes:
    """`struct flock` of fcntl(2); its process id has to be 0 here."""
    return struct.pack("hhqqi", kind, os.SEEK_SET, offset, size, 0)
