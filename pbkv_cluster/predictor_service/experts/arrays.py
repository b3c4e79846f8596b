"""Tables that grow with a workload's labels."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.base import Floats

N = TypeVar("N", bound=np.generic)


def grown(table: npt.NDArray[N], *shape: int) -> npt.NDArray[N]:
    """The table, or a copy of at least this shape: an axis that is too short is doubled, new cells are zeros."""
    if all(map(int.__ge__, table.shape, shape)):
        return table
    larger = np.zeros(
        [have if have >= need else max(need, 2 * have) for have, need in zip(table.shape, shape, strict=True)],
        dtype=table.dtype,
    )
    larger[tuple(slice(have) for have in table.shape)] = table
    return larger


def renumbered(table: Floats, columns: Sequence[int]) -> Floats:
    """The given columns of the table's last axis, in that order; columns that it does not have yet are left out."""
    present = np.array([column for column in columns if column < table.shape[-1]], dtype=np.intp)
    return np.ascontiguousarray(table[..., present])


def counts_of(state: dict[str, Any], name: str, *shape: int | None) -> Floats:
    """An array of a saved state: finite, not negative, of the given shape; None stands for any length.

    Raises:
        ValueError: it is missing, or not like that.
    """
    array = state.get(name)
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != len(shape)
        or any(want is not None and have != want for have, want in zip(array.shape, shape, strict=True))
        or not np.issubdtype(array.dtype, np.floating)
        or not (np.isfinite(array) & (array >= 0)).all()
    ):
        raise ValueError(f"{name} does not fit")
    return array.astype(np.float32)
