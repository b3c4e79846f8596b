"""Memory and limits of this machine."""

import os
import resource
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pbkv_cluster.cli.doctor.finding import Finding, error, ok, warning

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config

_GIB = 1 << 30
_SHM = "/dev/shm"
_RAY_SHM_BYTES = 256 << 20  # Ray's object store, which carries no blocks, does with that
_FILES = 4096
_UNLIMITED = resource.RLIM_INFINITY


def check_machine(config: "Config", pins: bool) -> Iterator[Finding]:
    """Memory, shared memory and limits.

    Args:
        config: of the cluster.
        pins: whether host memory is pinned for a GPU.
    """
    from pbkv_cluster.store.arena.machine import available_memory, total_memory

    total, available = total_memory(), available_memory()
    host = config.host_store.memory_bytes or int(config.host_store.memory_share * total)
    yield _host_memory(config, host, available)
    yield check_shared_memory(shutil.disk_usage(_SHM).total if os.path.isdir(_SHM) else 0, host)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield check_files(soft, hard)
    yield check_memlock(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], host, pins)


def _host_memory(config: "Config", host: int, available: int) -> Finding:
    setting = "host_store.memory_bytes" if config.host_store.memory_bytes else "host_store.memory_share"
    said = f"{host / _GIB:.1f} GiB for host tiers ({setting}), {available / _GIB:.1f} GiB are free"
    if host <= available:
        return ok("memory", said)
    if config.host_store.memory_bytes:
        return error("memory", said, f"set {setting} to at most {available}, or free memory")
    return warning("memory", f"{said}: tiers will be smaller", f"lower {setting}, or free memory")


def check_shared_memory(size: int, host: int) -> Finding:
    """`size` is that of /dev/shm, `host` the memory for host tiers, in bytes. The arena needs none of the former."""
    said = f"{_SHM} has {size / _GIB:.2f} GiB; the {host / _GIB:.1f} GiB of host tiers lie elsewhere"
    if size >= _RAY_SHM_BYTES:
        return ok("shared memory", said)
    remedy = f"give Ray at least {_RAY_SHM_BYTES >> 20} MiB: docker run --shm-size=1g, or mount a larger {_SHM}"
    return warning("shared memory", f"{said}; Ray falls back to files, which is slow", remedy)


def check_files(soft: int, hard: int) -> Finding:
    """Limits of open files."""
    said = f"{'any number' if soft == _UNLIMITED else f'{soft:,}'} of open files (ulimit -n)"
    if soft == _UNLIMITED or soft >= _FILES:
        return ok("open files", said)
    raised = "ulimit -n 65536" if hard == _UNLIMITED or hard >= _FILES else "LimitNOFILE= of the unit, or limits.conf"
    return warning("open files", f"{said}: Ray and many clients may need more", f"raise it to {_FILES:,} or more: {raised}")


def check_memlock(soft: int, host: int, pins: bool) -> Finding:
    """Memory that may be locked, which pinning for a GPU needs; in bytes."""
    said = f"{'any amount' if soft == _UNLIMITED else f'{soft / _GIB:.2f} GiB'} of memory may be locked (ulimit -l)"
    if not pins:
        return ok("locked memory", f"{said}; without a GPU nothing is pinned")
    if soft == _UNLIMITED or soft >= host:
        return ok("locked memory", said)
    return warning(
        "locked memory", f"{said}, host tiers have {host / _GIB:.1f} GiB", "ulimit -l unlimited, or LimitMEMLOCK=infinity"
    )
