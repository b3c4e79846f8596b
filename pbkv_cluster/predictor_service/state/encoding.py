"""Nested state of models as bytes: JSON for its structure, numpy's format for its arrays. Nothing in it is ever executed."""

import io
import json
import math
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

_ARRAY = "$array"
_TREE = "$tree"

# All that zipfile, numpy's reader and json are known to raise on damaged bytes, besides ValueError: the flags of a zip file may
# ask for something unsupported (RuntimeError, NotImplementedError), a header for more memory than there is, a bare array is no
# archive (AttributeError, TypeError), and lists may be nested too deeply (RecursionError, a RuntimeError).
_DAMAGED = (
    KeyError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    AttributeError,
    TypeError,
    zlib.error,
    struct.error,
)


def to_bytes(state: dict[str, Any]) -> bytes:
    """Packs dicts with strings for keys, lists, strings, finite numbers, booleans, None and numpy arrays of such numbers.

    Raises:
        ValueError: a number is not finite. Nothing that was learnt is infinite, so it is a defect that must not be kept.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def packed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            name = str(len(arrays))
            arrays[name] = _finite(value)
            return {_ARRAY: name}
        if isinstance(value, dict):
            return {key: packed(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [packed(each) for each in value]
        return value

    tree = np.frombuffer(json.dumps(packed(state), allow_nan=False).encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_TREE: tree, **arrays})
    return file.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The inverse of `to_bytes`.

    Raises:
        ValueError: `data` is not what `to_bytes` gives.
    """
    try:
        _check_sizes(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: _finite(archive[name]) for name in archive.files}
        tree = json.loads(arrays.pop(_TREE).tobytes(), parse_float=_finite_float, parse_constant=_finite_float)
    except _DAMAGED as error:
        raise ValueError(f"it is not a saved state: {error}") from error

    def unpacked(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {_ARRAY}:
                if value[_ARRAY] not in arrays:
                    raise ValueError(f"array {value[_ARRAY]} is missing")
                return arrays[value[_ARRAY]]
            return {key: unpacked(each) for key, each in value.items()}
        return [unpacked(each) for each in value] if isinstance(value, list) else value

    state = unpacked(tree)
    if not isinstance(state, dict):
        raise ValueError("it is not a saved state")
    return state


def _check_sizes(data: bytes) -> None:
    """The archive is not compressed: one whose parts claim to be larger than all of it would fill the memory."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(part.file_size for part in archive.infolist()) > len(data):
            raise ValueError("it is not a saved state: it claims to hold more bytes than it has")


def _finite(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise ValueError("an array holds a number that is not finite")
    return array


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value
