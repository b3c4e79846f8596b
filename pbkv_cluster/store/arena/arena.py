"""The arena of a node, as its host store gives it out: regions of shared memory, one for each process that caches blocks.

A process that restarts before its region expires gets the same region again, with its blocks. A host store that restarts
finds the arena and its regions where the workers hold them. Whether the machine has the memory is checked when a region is
given out, but the memory is taken by its owner, page by page (`page_touch`), so that the largest region is given out at
once.
"""

import logging
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, StartupError, Unavailable
from pbkv_cluster.store.arena import segment
from pbkv_cluster.store.arena.layout import MAX_REGIONS, PAGE
from pbkv_cluster.store.arena.machine import bind_to_numa_node
from pbkv_cluster.store.arena.region_lock import try_lock, unlock
from pbkv_cluster.store.arena.region_table import RegionPlace, RegionTable, data_offset, page_bytes
from pbkv_cluster.store.arena.segment import Memory

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Region:
    """Bytes `offset` to `offset + size` of the arena's file."""

    offset: int
    size: int
    expires_at: float


class Arena:
    """A segment of fixed size that every worker of the node maps a region of."""

    def __init__(
        self,
        name: str,
        capacity: int,
        ttl_s: float,
        clock: Clock,
        workers: int = 1,
        memory: Memory = Memory(),  # noqa: B008  # immutable
        available: Callable[[], int] | None = None,
    ) -> None:
        """Finds the arena of this name if a process of this user holds it open, or else makes one.

        Args:
            name: of the node and its cluster, by which a host store that restarts finds the arena.
            capacity: bytes for regions; memory is taken by regions only.
            ttl_s: seconds after which a region expires if its owner does not renew it.
            clock: time of expiry.
            workers: that are meant to use it; equal parts are theirs.
            memory: what kind; one that is found stays as it is.
            available: bytes of memory that can be taken now; by default what the machine says.

        Raises:
            StartupError: the machine does not offer such memory, or another host store serves this arena.
        """
        self.ttl_s = ttl_s
        self._clock = clock
        self._available = available or memory.available
        self._regions: dict[str, Region] = {}
        self._file, self._table = self._found(name) or self._made(name, capacity, memory)
        self.path = segment.path_of(self._file)  # for processes of the same user
        self.capacity = self._table.capacity
        self._part = self.capacity // workers
        self._page = page_bytes(self._file)
        self._start = data_offset(self._page)

    def acquire(self, owner: str, size: int, may_be_less: bool = False) -> Region:
        """Gives a process a region of at least `size` bytes, or renews the one that it has.

        With `may_be_less` it is as large as there is room for, but no larger than `size` or an equal part of the arena. An
        owner that has a region with bytes keeps it whatever its size, so that a restarted owner finds its blocks.
        Size 0 renews the owner's region whatever its size; an owner without one gets an empty region, which makes it known.

        Raises:
            InvalidArgument: the size is negative.
            ResourceExhausted: the arena or the machine lacks the memory, or too many processes have a region.
            Unavailable: the region must change its size, and another process of the owner still uses it.
        """
        if size < 0:
            raise InvalidArgument("bytes", f"must not be negative, got {size}")
        region = self._regions.get(owner)
        size = -(-size // self._page) * self._page
        if may_be_less and size:
            size = self._size_for(owner, size)
        expires_at = self._clock.now() + self.ttl_s
        if region is not None and size and region.size != size:
            if region.size and not self._free(owner):
                raise Unavailable(f"another process of {owner} still uses {region.size} bytes of the arena")
            region = None
        if region is not None:  # before the others expire: a late renewal keeps its bytes if nobody has taken them
            region.expires_at = expires_at
        self._expire()
        if region is None:
            if owner not in self._regions and len(self._regions) >= MAX_REGIONS:
                raise ResourceExhausted(f"{MAX_REGIONS} workers have a region of this node's arena")
            region = Region(self._reserve(size), size, expires_at)
            self._regions[owner] = region
            self._table.put(RegionPlace(owner, region.offset, region.size))
        return region

    def regions(self) -> dict[str, Region]:
        """The regions that have not expired, by owner."""
        self._expire()
        return dict(self._regions)

    def region_bytes(self) -> dict[str, int]:
        """Sizes of the regions, by owner. Unlike `regions` it changes nothing, and may be called while another call runs."""
        return {owner: region.size for owner, region in tuple(self._regions.items())}

    @property
    def taken_bytes(self) -> int:
        """Memory that regions have taken from the machine."""
        return max(0, os.fstat(self._file).st_blocks * 512 - self._start)

    def close(self) -> None:
        """Closes the file. Workers that have it mapped keep their memory."""
        if self._file >= 0:
            self._table.close()
            os.close(self._file)
            self._file = -1

    def _found(self, name: str) -> tuple[int, RegionTable] | None:
        for file in segment.find(name):
            try:
                table = RegionTable(file, writable=True)
            except FailedPrecondition as error:
                log.warning("an arena is left to the processes that use it, and a new one is made: %s", error)
                os.close(file)
                continue
            with _closed_on_error(file, table):
                _lock(file)
            table.repair()
            for place in table:
                self._regions[place.owner] = Region(place.offset, place.size, self._clock.now() + self.ttl_s)
            log.warning("found the node's arena again, with %d regions", len(self._regions))
            return file, table
        return None

    def _made(self, name: str, capacity: int, memory: Memory) -> tuple[int, RegionTable]:
        capacity = capacity // memory.page_bytes * memory.page_bytes
        file = segment.create(name, capacity, memory)
        table = RegionTable(file, writable=True, capacity=capacity)
        with _closed_on_error(file, table):
            _lock(file)
            if memory.numa_node >= 0:
                table.bind(bind_to_numa_node, memory.numa_node)
        return file, table

    def _expire(self) -> None:
        now = self._clock.now()
        for owner in [name for name, region in self._regions.items() if region.expires_at < now]:
            if not self._free(owner):
                log.warning("worker %s does not renew its region of the arena but still uses it: it keeps it", owner)
                self._regions[owner].expires_at = now + self.ttl_s

    def _free(self, owner: str) -> bool:
        """Gives a region's memory back to the machine; False if a living process has it mapped."""
        region = self._regions[owner]
        if region.size:
            if not try_lock(self._file, region.offset, region.size):
                return False
            self._table.remove(owner)
            with mmap.mmap(self._file, region.size, offset=region.offset) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)
            unlock(self._file, region.offset, region.size)
        else:
            self._table.remove(owner)
        del self._regions[owner]
        return True

    def _size_for(self, owner: str, size: int) -> int:
        """Bytes of a region that may be of another size than `size`."""
        region = self._regions.get(owner)
        if region is not None and region.size:
            return region.size
        size = min(size, self._part, self._largest_gap(owner), self._memory_left())
        return max(0, size) // self._page * self._page

    def _largest_gap(self, owner: str) -> int:
        """Bytes of the largest region that a process could have in place of its own."""
        others = [region for name, region in self._regions.items() if name != owner and region.size]
        edges = [
            self._start,
            *(edge for each in sorted(others, key=_offset) for edge in (each.offset, each.offset + each.size)),
        ]
        end = self._start + self.capacity
        return int(max(stop - start for start, stop in zip(edges[::2], [*edges[1::2], end], strict=True)))

    def _memory_left(self) -> int:
        """Bytes that the machine can give beyond what has been promised."""
        promised = sum(region.size for region in self._regions.values())
        return self._available() - max(0, promised - self.taken_bytes)

    def _reserve(self, size: int) -> int:
        """Finds the first gap that is large enough. Returns its offset."""
        if size == 0:
            return 0
        at = self._start
        for region in sorted((each for each in self._regions.values() if each.size), key=_offset):
            if region.offset - at >= size:
                break
            at = region.offset + region.size
        if at + size > self._start + self.capacity:
            raise ResourceExhausted(
                f"the arena of {self.capacity} bytes has no room for {size} more (host_store.memory_share, .memory_bytes)"
            )
        left = self._memory_left()
        if size > left:
            raise ResourceExhausted(
                f"the machine has no memory for {size} bytes more of the arena: {max(0, left)} bytes are available "
                "(engine.host_blocks, host_store.memory_share)"
            )
        return at


def _offset(region: Region) -> int:
    return region.offset


@contextmanager
def _closed_on_error(file: int, table: RegionTable) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(os.close, file)
        stack.callback(table.close)
        yield
        stack.pop_all()


def _lock(file: int) -> None:
    """Only one host store may give out regions of an arena."""
    if not try_lock(file, 0, PAGE):
        raise StartupError("host_store: another host store serves this node's arena")
