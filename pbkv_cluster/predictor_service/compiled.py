"""Functions over arrays as machine code, where the calls of numpy on a workflow's few numbers would cost more than the work."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, compiled when it is called first, and kept on disk for later processes.

    It checks no bounds: whoever calls it answers for its numbers. What it calls must be compiled, and lie in the same module,
    or a change there would go unnoticed.
    """
    try:
        return _compiled(function, kept=True)
    except RuntimeError:  # no folder can be written: it is compiled in each process
        return _compiled(function, kept=False)


def _compiled(function: Callable[P, R], kept: bool) -> Callable[P, R]:
    contract = {"contract"}  # products may be added without being rounded first
    return cast(Callable[P, R], numba.njit(function, cache=kept, fastmath=contract, error_model="numpy"))
