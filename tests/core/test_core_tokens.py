"""Packed tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_TOKENS, TOKEN_BYTES, as_array, blocks_for, count, full_blocks, pack, unpack

IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=64)


@given(IDS)
def test_unpack_reverses_pack(ids: list[int]) -> None:
    packed = pack(ids)
    assert unpack(packed) == ids
    assert count(packed) == len(ids)
    assert as_array(packed).tolist() == ids


@given(IDS, IDS)
def test_packing_is_concatenation(left: list[int], right: list[int]) -> None:
    assert pack(left) + pack(right) == pack(left + right)


def test_the_layout_is_little_endian_on_every_machine() -> None:
    assert pack([1, -2]) == b"\x01\0\0\0\xfe\xff\xff\xff"


def test_any_iterable_packs() -> None:
    assert pack(iter(range(3))) == pack(range(3)) == pack(np.arange(3)) == pack((0, 1, 2))


@pytest.mark.parametrize("wrong", [2**31, -(2**31) - 1, 2**64])
def test_ids_beyond_32_bits_are_refused(wrong: int) -> None:
    with pytest.raises(OverflowError):
        pack([1, wrong])


@pytest.mark.parametrize("size", [1, 3, 5])
def test_bytes_of_half_a_token_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="buffer size"):
        unpack(bytes(size))


def test_the_view_is_not_a_copy_and_cannot_be_written() -> None:
    packed = pack(range(8))
    view = as_array(packed)
    assert np.shares_memory(view, np.frombuffer(packed, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


@given(st.integers(0, 2**40))
def test_block_counts_bracket_the_tokens(tokens: int) -> None:
    assert full_blocks(tokens) * BLOCK_TOKENS <= tokens <= blocks_for(tokens) * BLOCK_TOKENS
    assert blocks_for(tokens) - full_blocks(tokens) == (1 if tokens % BLOCK_TOKENS else 0)


def test_sizes_agree() -> None:
    assert len(pack(range(BLOCK_TOKENS))) == BLOCK_TOKENS * TOKEN_BYTES
