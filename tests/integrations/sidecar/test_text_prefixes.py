"""Beginnings of texts: a prefix of what was added is found, and what the engine has evicted is not."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.integrations.sidecar.engines.text_prefixes import BYTES_A_PIECE, PIECE_TOKENS, TextPrefixes
from pbkv_cluster.store.kv_events.engine_blocks import prefix_keys

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=20)


def keys_of(text: list[int]) -> list[bytes]:
    """A piece for each number."""
    return prefix_keys(b"".join(number.to_bytes(64) for number in text), PIECE_TOKENS)


@given(TEXTS, st.lists(st.integers(0, 2), max_size=6))
def test_the_longest_common_beginning_is_found(texts: list[list[int]], asked: list[int]) -> None:
    prefixes = TextPrefixes(1 << 20)
    for text in texts:
        prefixes.add(keys_of(text))
    longest = max((_common(text, asked) for text in texts), default=0)
    assert prefixes.match(keys_of(asked)) == longest * PIECE_TOKENS


@given(TEXTS, st.integers(1, 12))
def test_the_least_recently_used_goes_first_and_never_before_what_follows_it(texts: list[list[int]], room: int) -> None:
    prefixes = TextPrefixes(room * BYTES_A_PIECE)
    for text in texts:
        prefixes.add(keys_of(text))
        assert len(prefixes) <= room
        assert prefixes.match(keys_of(text)) == min(len(text), room) * PIECE_TOKENS
        for other in texts:
            keys = keys_of(other)
            held = [prefixes.match(keys[:end]) == end * PIECE_TOKENS for end in range(1, len(keys) + 1)]
            assert held == sorted(held, reverse=True), "a piece is held without the one before it"


def test_an_answer_that_found_less_than_expected_drops_all_that_was_used_before() -> None:
    prefixes = TextPrefixes(1 << 20)
    old, text, new = keys_of([9, 9]), keys_of([1, 2, 3, 4]), keys_of([8, 8])
    for each in (old, text, new):
        prefixes.add(each)
    prefixes.correct(text, 16)
    assert prefixes.match(old) == 0
    assert prefixes.match(text) == 2 * PIECE_TOKENS
    assert prefixes.match(new) == 2 * PIECE_TOKENS


@given(st.integers(0, 30), st.floats(0, 1))
def test_a_share_that_the_engine_has_evicted_is_dropped(number: int, share: float) -> None:
    prefixes = TextPrefixes(1 << 20)
    prefixes.add(keys_of(list(range(number))))
    prefixes.drop_share(share)
    assert len(prefixes) == number - round(share * number)


def test_pieces_have_as_many_tokens_as_measured() -> None:
    prefixes = TextPrefixes(1 << 20)
    prefixes.add(keys_of(list(range(10))))
    for _ in range(200):
        prefixes.measure(10, 200)
    assert 190 <= prefixes.match(keys_of(list(range(10)))) <= 200


def _common(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
