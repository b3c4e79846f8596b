"""Nested state as bytes and back."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pbkv_cluster.predictor_service.state.encoding import from_bytes, to_bytes

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
) | arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.int64]),
    arrays.array_shapes(min_side=0, max_dims=3, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)
KEYS = st.text(max_size=8).filter(lambda key: not key.startswith("$"))
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
STATES = st.dictionaries(KEYS, TREES, max_size=4)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@settings(deadline=None)
@given(state=STATES)
def test_round_trip(state: dict[str, Any]) -> None:
    assert same(from_bytes(to_bytes(state)), state)


def test_tuples_come_back_as_lists() -> None:
    assert from_bytes(to_bytes({"a": (1, "x")})) == {"a": [1, "x"]}


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_bytes(data)


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 10_000), change=st.integers(1, 255), cut=st.booleans())
def test_damaged_bytes_are_refused_or_were_padding(at: int, change: int, cut: bool) -> None:
    good = to_bytes({"a": np.arange(6.0), "b": ["x", {"c": None}]})
    at %= len(good)
    bad = good[:at] if cut else good[:at] + bytes([good[at] ^ change]) + good[at + 1 :]
    try:
        state = from_bytes(bad)
    except ValueError:
        return
    assert state.keys() <= {"a", "b"}


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(number: float) -> None:
    for state in ({"a": number}, {"a": [1.0, {"b": number}]}, {"a": np.array([number], dtype=np.float32)}):
        with pytest.raises(ValueError, match=r"finite|JSON compliant"):
            to_bytes(state)
    for tree, arrays_in in (
        (b'{"a": Infinity}', {}),
        (b'{"a": NaN}', {}),
        (b'{"a": 1e999}', {}),
        (b"{}", {"0": np.array([number])}),
    ):
        file = io.BytesIO()
        np.savez(file, **{"$tree": np.frombuffer(tree, dtype=np.uint8), **arrays_in})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="finite"):
            from_bytes(file.getvalue())


def test_a_compressed_bomb_is_not_unpacked() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **{"$tree": np.zeros(64 << 20, dtype=np.uint8)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="claims to hold more bytes than it has"):
        from_bytes(file.getvalue())


def test_a_bare_array_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="not a saved state"):
        from_bytes(file.getvalue())


def test_an_array_that_claims_to_be_huge_is_refused() -> None:
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("$tree.npy", array.getvalue())
    with pytest.raises(ValueError, match=r".+"):
        from_bytes(file.getvalue())


def test_objects_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.savez(file, **{"$tree": np.array([{"a": 1}], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r".+"):
        from_bytes(file.getvalue())


@pytest.mark.parametrize("tree", [b"[1]", b'{"a": {"$array": "7"}}', b"{", b"\xff", b"[" * 100_000])
def test_trees_that_mean_nothing_are_refused(tree: bytes) -> None:
    file = io.BytesIO()
    np.savez(file, **{"$tree": np.frombuffer(tree, dtype=np.uint8)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r".+"):
        from_bytes(file.getvalue())
