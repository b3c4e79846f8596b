"""The arena: one file in shared memory per node, divided into regions, one per worker.

A worker that restarts before its region expires gets the same region again. Memory is reserved when a region is given out, so
that a lack of memory is an error then, and not a bus error in the middle of a copy. The file has no name: the kernel frees it
when the last process that has it open or mapped ends, however that happens.
"""

import errno
import logging
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import InvalidArgument, ResourceExhausted
from pbkv_cluster.store.arena.region_lock import try_lock, unlock

log = logging.getLogger(__name__)

MAX_REGIONS = 1024  # as many as a cluster may have workers; an empty region costs memory too


@dataclass(slots=True)
class Region:
    """Bytes `offset` to `offset + size` of the arena."""

    offset: int
    size: int
    expires_at: float


class Arena:
    """A file of fixed size that every worker of the node maps a region of."""

    def __init__(self, capacity: int, ttl_s: float, clock: Clock, directory: Path | None = None, workers: int = 1) -> None:
        """Args:
        capacity: bytes; memory is taken by regions only.
        ttl_s: seconds after which a region expires if its worker does not renew it.
        clock: time of expiry.
        directory: where the file is; by default in the machine's shared memory.
        workers: that are meant to use it; equal parts are theirs.
        """
        self.capacity = capacity // mmap.PAGESIZE * mmap.PAGESIZE
        self.ttl_s = ttl_s
        self._part = self.capacity // workers
        self._clock = clock
        with tempfile.TemporaryFile(dir=directory or default_directory()) as file:
            self._file = os.dup(file.fileno())
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._file}")  # for processes of the same user
        os.ftruncate(self._file, self.capacity)
        self._regions: dict[str, Region] = {}

    def acquire(self, worker_id: str, size: int, may_be_less: bool = False) -> Region:
        """Gives a worker a region of at least `size` bytes, or renews the one that it has.

        With `may_be_less` it is as large as there is room for, but no larger than `size` or an equal part of the arena.
        Size 0 renews the worker's region whatever its size; a worker without one gets an empty region, which makes it known.

        Raises:
            InvalidArgument: the size is negative.
            ResourceExhausted: the arena or the machine lacks the memory, or too many workers have a region.
        """
        if size < 0:
            raise InvalidArgument("bytes", f"must not be negative, got {size}")
        if may_be_less:
            size = min(size, self._part, self._largest_gap(worker_id))
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        expires_at = self._clock.now() + self.ttl_s
        region = self._regions.get(worker_id)
        if region is not None and size and region.size != size:
            if not self._free(worker_id):
                raise ResourceExhausted(f"another process of {worker_id} still uses {region.size} bytes of the arena")
            region = None
        if region is not None:  # before the others expire: a late renewal keeps its bytes if nobody has taken them
            region.expires_at = expires_at
        self._expire()
        if region is None:
            if len(self._regions) >= MAX_REGIONS:
                raise ResourceExhausted(f"{MAX_REGIONS} workers have a region of this node's arena")
            region = self._regions[worker_id] = Region(self._reserve(size), size, expires_at)
        return region

    def regions(self) -> dict[str, Region]:
        """The regions that have not expired, by worker id."""
        self._expire()
        return dict(self._regions)

    def close(self) -> None:
        """Closes the file. Workers that have it mapped keep their memory."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _expire(self) -> None:
        now = self._clock.now()
        for worker_id in [name for name, region in self._regions.items() if region.expires_at < now]:
            if not self._free(worker_id):
                log.warning("worker %s does not renew its region of the arena but still uses it: it keeps it", worker_id)
                self._regions[worker_id].expires_at = now + self.ttl_s

    def _free(self, worker_id: str) -> bool:
        """Gives a region's memory back to the machine; False if a living process has it mapped."""
        region = self._regions[worker_id]
        if region.size:
            if not try_lock(self._file, region.offset, region.size):
                return False
            with mmap.mmap(self._file, region.size, offset=region.offset) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)
            unlock(self._file, region.offset, region.size)
        del self._regions[worker_id]
        return True

    def _largest_gap(self, worker_id: str) -> int:
        """Bytes of the largest region that a worker could have in place of its own."""
        others = [region for name, region in self._regions.items() if name != worker_id]
        edges = [0, *(edge for each in sorted(others, key=_offset) for edge in (each.offset, each.offset + each.size))]
        return max(end - start for start, end in zip(edges[::2], [*edges[1::2], self.capacity], strict=True))

    def _reserve(self, size: int) -> int:
        """Reserves memory in the first gap that is large enough. Returns its offset."""
        if size == 0:
            return 0
        at = 0
        for region in sorted(self._regions.values(), key=_offset):
            if region.offset - at >= size:
                break
            at = region.offset + region.size
        if at + size > self.capacity:
            raise ResourceExhausted(f"the arena of {self.capacity} bytes has no room for {size} more (host_store.memory_share)")
        try:
            os.posix_fallocate(self._file, at, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise ResourceExhausted(f"the machine's shared memory has no room for {size} bytes: {error.strerror}") from error
        return at


def _offset(region: Region) -> int:
    return region.offset


def free_shared_memory() -> int:
    """Bytes that the machine's shared memory can hold beside what it holds now."""
    free = os.statvfs(default_directory())
    return free.f_bavail * free.f_frsize


def default_directory() -> Path:
    """The machine's shared memory, or its temporary directory where there is none."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())
