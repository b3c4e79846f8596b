"""Requests for blocks, and bytes that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.checks import MAX_NAME_BYTES
from pbkv_cluster.store.peers.wire import (
    MAX_BLOCKS,
    MAX_PAYLOAD_BYTES,
    REQUEST,
    WANTED,
    Malformed,
    Request,
    RequestSize,
)

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda name: len(name.encode()) <= MAX_NAME_BYTES)
BLOCKS = st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1)), min_size=1, max_size=20)


def unpack(packed: bytes) -> Request:
    size = RequestSize.unpack(packed[: REQUEST.size])
    rest = packed[REQUEST.size :]
    assert len(rest) == size.rest_bytes
    return Request.unpack(size, rest)


@given(region=NAMES, payload_bytes=st.integers(1, MAX_PAYLOAD_BYTES), blocks=BLOCKS)
def test_a_request_arrives_as_it_was_made(region: str, payload_bytes: int, blocks: list[tuple[bytes, int]]) -> None:
    request = Request(region, payload_bytes, blocks)
    assert unpack(request.pack()) == request


@given(head=st.binary(min_size=REQUEST.size, max_size=REQUEST.size), rest=st.binary(max_size=400))
def test_bytes_that_are_no_request_are_malformed_and_nothing_else(head: bytes, rest: bytes) -> None:
    try:
        size = RequestSize.unpack(head)
    except Malformed:
        return
    assert 0 < size.rest_bytes <= MAX_NAME_BYTES + MAX_BLOCKS * WANTED.size, "memory for a request is bounded"


@given(name=st.binary(min_size=1, max_size=MAX_NAME_BYTES), blocks=st.integers(1, 5))
def test_a_name_that_is_no_text_is_malformed(name: bytes, blocks: int) -> None:
    size = RequestSize.unpack(REQUEST.pack(blocks, len(name), 1))
    try:
        request = Request.unpack(size, name + bytes(blocks * WANTED.size))
    except Malformed:
        with pytest.raises(UnicodeDecodeError):
            name.decode()
    else:
        assert (request.region.encode(), len(request.wanted)) == (name, blocks)


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ((0, 1, 1), "0 blocks"),
        ((MAX_BLOCKS + 1, 1, 1), "4097 blocks"),
        ((1, 0, 1), "name of its region has 0 bytes"),
        ((1, MAX_NAME_BYTES + 1, 1), "has 257 bytes"),
        ((1, 1, 0), "payloads have 0 bytes"),
        ((1, 1, MAX_PAYLOAD_BYTES + 1), "payloads have 4294967297 bytes"),
    ],
)
def test_what_is_beyond_a_bound_is_named(head: tuple[int, int, int], problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        RequestSize.unpack(REQUEST.pack(*head))
