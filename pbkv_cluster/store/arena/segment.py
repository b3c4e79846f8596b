"""The shared memory that an arena lies in: a file without a name in any folder, which lives as long as a process uses it.

Nothing of it can remain when all its processes have ended, however that happens, so nothing has to be swept, and what
living ones use cannot be swept by mistake. A host store that starts again finds it where the workers of the node hold it
open.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.store.arena import machine
from pbkv_cluster.store.arena.layout import PAGE
from pbkv_cluster.store.arena.region_table import data_offset, page_bytes

HugePages = Literal["none", "transparent", "reserved"]

_PROC = Path("/proc")
_MAX_NAME = 200  # bytes, of the kernel's 249


@dataclass(frozen=True, slots=True)
class Memory:
    """What kind of memory an arena is made of."""

    huge_pages: HugePages = "none"
    numa_node: int = -1  # -1: any

    def check(self, size: int) -> None:
        """Raises:
        StartupError: the machine does not offer it.
        """
        if self.huge_pages == "transparent":
            machine.check_transparent_huge_pages()
        elif self.huge_pages == "reserved":
            machine.check_huge_pages(size)
        if self.numa_node >= 0:
            machine.check_numa_node(self.numa_node)

    @property
    def page_bytes(self) -> int:
        """What the size of a region is a multiple of."""
        return machine.huge_page_bytes() if self.huge_pages == "reserved" else PAGE

    def available(self) -> int:
        """Bytes that can be taken now."""
        return machine.available_huge_pages() if self.huge_pages == "reserved" else machine.available_memory()


def create(name: str, capacity: int, memory: Memory) -> int:
    """Makes a segment for regions of `capacity` bytes. No memory is taken yet. Returns the open file.

    Raises:
        StartupError: the machine does not offer such memory.
    """
    memory.check(capacity)
    flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if memory.huge_pages == "reserved" else 0)
    try:
        file = os.memfd_create(_encoded(name), flags)
    except OSError as error:
        raise StartupError(f"host_store: the kernel gives no shared memory: {error.strerror}") from error
    os.ftruncate(file, data_offset(page_bytes(file)) + capacity)
    return file


def find(name: str) -> Iterator[int]:
    """Segments of a name that processes of this user hold open, each once, as files opened here; the caller closes them."""
    link = f"/memfd:{_encoded(name)} (deleted)"
    seen: set[int] = set()
    for folder in _PROC.glob("[0-9]*/fd"):
        # Processes of others cannot be looked into, and any may end meanwhile.
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(path) != link or path.stat().st_ino in seen:
                        continue
                    seen.add(path.stat().st_ino)
                    yield os.open(path, os.O_RDWR | os.O_CLOEXEC)


def path_of(file: int) -> Path:
    """Where other processes of the same user can open it, as long as this process has it open."""
    return _PROC / str(os.getpid()) / "fd" / str(file)


def _encoded(name: str) -> str:
    return "".join(char if char.isascii() and char.isprintable() and char != "/" else "_" for char in name)[:_MAX_NAME]
