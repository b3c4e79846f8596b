"""Pieces of prompts: equal texts have equal pieces at any position, and no more than an event can carry."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.text.prompt_pieces import PIECES, WINDOW_TOKENS, prompt_pieces
from pbkv_cluster.core.tokens import pack

WRAP = 1 << 64
SPARSE = 1 << 28  # pieces are below this: one window in sixteen is selected


def text(seed: int, length: int, vocabulary: int = 150_000) -> list[int]:
    draws = random.Random(seed)
    return [draws.randrange(vocabulary) for _ in range(length)]


TEXTS = st.builds(text, st.integers(0, 999), st.integers(0, 700), st.sampled_from([2, 5, 150_000]))
LONG_TEXTS = st.builds(text, st.integers(0, 99), st.integers(2500, 6000))
ANY_IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=64)


def defined(ids: list[int]) -> tuple[int, ...]:
    """The definition: each window's hash computed by itself, with Python's integers."""
    found: dict[int, None] = {}
    for start in range(len(ids) - WINDOW_TOKENS + 1):
        total = 0
        for power, token in enumerate(ids[start : start + WINDOW_TOKENS], 1):
            mixed = (token + 1) * 0x9E3779B97F4A7C15 % WRAP
            total += (mixed ^ mixed >> 29) * pow(0xBF58476D1CE4E5B9, power, WRAP)
        total %= WRAP
        piece = (total ^ total >> 32) * 0x9E3779B97F4A7C15 % WRAP >> 32
        if piece < SPARSE:
            found[piece] = None
    kept = set(sorted(found)[:PIECES])
    return tuple(piece for piece in found if piece in kept)


@given(TEXTS | ANY_IDS)
def test_pieces_agree_with_their_definition(ids: list[int]) -> None:
    assert prompt_pieces(pack(ids)) == defined(ids)


@given(TEXTS | LONG_TEXTS)
def test_pieces_are_distinct_and_bounded(ids: list[int]) -> None:
    pieces = prompt_pieces(pack(ids))
    assert len(set(pieces)) == len(pieces) <= PIECES
    assert all(0 <= piece < SPARSE for piece in pieces)


@given(TEXTS, TEXTS | LONG_TEXTS, TEXTS | LONG_TEXTS)
def test_a_text_has_the_same_pieces_at_any_position(ids: list[int], before: list[int], after: list[int]) -> None:
    own, whole = prompt_pieces(pack(ids)), prompt_pieces(pack(before + ids + after))
    for piece in own:
        # A piece is missing only if the prompt has as many smaller ones as can be kept.
        assert piece in whole or (len(whole) == PIECES and piece > max(whole))


@given(TEXTS, TEXTS)
def test_pieces_are_in_order_of_position(ids: list[int], after: list[int]) -> None:
    own, whole = prompt_pieces(pack(ids)), prompt_pieces(pack(ids + after))
    if len(whole) < PIECES:
        assert whole[: len(own)] == own


def test_a_long_prompt_has_the_most_pieces_allowed() -> None:
    assert len(prompt_pieces(pack(text(1, 100_000)))) == PIECES


def test_one_window_in_sixteen_is_selected() -> None:
    counts = [len(prompt_pieces(pack(text(seed, 1007)))) for seed in range(40)]
    assert 55 < sum(counts) / len(counts) < 70


@pytest.mark.parametrize("length", range(WINDOW_TOKENS))
def test_a_prompt_shorter_than_a_window_has_no_pieces(length: int) -> None:
    assert prompt_pieces(pack(range(length))) == ()


def test_incomplete_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="buffer size"):
        prompt_pieces(bytes(WINDOW_TOKENS * 4 + 1))


def test_pieces_are_the_same_in_every_process() -> None:
    """What has been learnt from them outlives processes and releases."""
    assert prompt_pieces(pack(range(100))) == (208085404, 28343767, 211490904, 236034443, 140760795, 89320102)
