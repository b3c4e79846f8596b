"""What the machine offers an arena: memory that is left, huge pages, NUMA nodes."""

import ctypes
import os
import re
from pathlib import Path
from typing import NamedTuple

from pbkv_cluster.core.errors import StartupError

LIBC = ctypes.CDLL(None, use_errno=True)

_MEMINFO = Path("/proc/meminfo")
_NODES = Path("/sys/devices/system/node")
TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


class ControlGroup(NamedTuple):
    """Where a memory control group says what it may use and what it uses."""

    limit: Path
    used: Path
    statistics: Path
    reclaimable: str  # what `statistics` calls the cached files that are given up before memory runs out; `used` counts them


# That which this process sees as its root: as in a container, version 2, then 1.
CONTROL_GROUPS = (
    ControlGroup(
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory.current"),
        Path("/sys/fs/cgroup/memory.stat"),
        "inactive_file",
    ),
    ControlGroup(
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
        "total_inactive_file",
    ),
)
_MBIND = {"x86_64": 237, "aarch64": 235}  # number of the system call, which the C library has no function for
_MPOL_BIND = 2


def total_memory() -> int:
    """Bytes of memory that this machine has, or that this container may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(limit for limit, _ in _group_limits())])


def available_memory() -> int:
    """Bytes of memory that can be taken now without swapping, as far as the kernel can tell."""
    return max(0, min([_meminfo("MemAvailable") << 10, *(limit - used for limit, used in _group_limits())]))


def available_huge_pages() -> int:
    """Bytes of free huge pages of the default size."""
    return _meminfo("HugePages_Free") * huge_page_bytes()


def huge_page_bytes() -> int:
    """Size of a huge page."""
    return _meminfo("Hugepagesize") << 10


def check_transparent_huge_pages() -> None:
    """Raises:
    StartupError: the kernel gives no transparent huge pages to shared memory.
    """
    modes = TRANSPARENT_HUGE_PAGES.read_text() if TRANSPARENT_HUGE_PAGES.exists() else "[never]"
    if "[never]" in modes or "[deny]" in modes:
        raise StartupError(
            f"host_store.huge_pages: the kernel gives shared memory no transparent huge pages; "
            f"write `advise` to {TRANSPARENT_HUGE_PAGES}, or set it to none"
        )


def check_huge_pages(size: int) -> None:
    """Raises:
    StartupError: too few huge pages have been reserved.
    """
    if (free := available_huge_pages()) < size:
        raise StartupError(
            f"host_store.huge_pages: {free} bytes of huge pages are free, and the arena may take {size}; "
            "reserve more (vm.nr_hugepages), or set it to none"
        )


def check_numa_node(node: int) -> None:
    """Raises:
    StartupError: there is no such NUMA node.
    """
    if not (_NODES / f"node{node}").is_dir():
        known = sorted(int(path.name[4:]) for path in _NODES.glob("node[0-9]*")) or "none"
        raise StartupError(f"host_store.numa_node: this machine has no node {node} (it has {known})")


def bind_to_numa_node(address: int, size: int, node: int) -> None:
    """Makes the pages of a shared mapping come from one NUMA node, whichever process touches them first.

    Raises:
        StartupError: the kernel refuses.
    """
    number = _MBIND.get(os.uname().machine)
    mask = (ctypes.c_ulong * (node // 64 + 1))()
    mask[node // 64] = 1 << node % 64
    arguments = ctypes.c_void_p(address), ctypes.c_size_t(size), _MPOL_BIND, mask, ctypes.c_ulong(len(mask) * 64 + 1), 0
    if number is None or LIBC.syscall(number, *arguments):
        why = os.strerror(ctypes.get_errno()) if number else "unknown on this kind of machine"
        raise StartupError(f"host_store.numa_node: memory cannot be bound to node {node}: {why}")


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", _MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _group_limits() -> list[tuple[int, int]]:
    """Bytes that each control group may use, and that it uses and cannot give up."""
    limits = []
    for group in CONTROL_GROUPS:
        if group.limit.exists() and (text := group.limit.read_text().strip()) != "max":
            found = re.search(rf"^{group.reclaimable} (\d+)$", group.statistics.read_text(), re.MULTILINE)
            limits.append((int(text), int(group.used.read_text()) - (int(found[1]) if found else 0)))
    return limits
