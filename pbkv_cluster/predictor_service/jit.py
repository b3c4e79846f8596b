"""Functions over arrays, compiled to machine code: on a workflow's few numbers, calls of numpy cost more than the work."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a function at its first call, and keeps the code on disk for later processes.

    NOTE: compiled code checks no bounds; its caller must. A function that it calls must be compiled too and be in the same
    module, or a change there would leave stale code on disk.
    """
    try:
        return _compiled(function, on_disk=True)
    except RuntimeError:  # no folder is writable: each process compiles
        return _compiled(function, on_disk=False)


def _compiled(function: Callable[P, R], on_disk: bool) -> Callable[P, R]:
    contract = {"contract"}  # a product may be added without rounding it first
    return cast(Callable[P, R], numba.njit(function, cache=on_disk, fastmath=contract, error_model="numpy"))
