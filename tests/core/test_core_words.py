"""Hashed words: small numbers, the same for upper and lower case, of a text's beginning only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.text.words import TEXT_CHARACTERS, WORD_BITS, WORDS, hashed_words

TEXT = st.text(max_size=2 * TEXT_CHARACTERS)


@given(TEXT)
def test_words_are_few_and_small(text: str) -> None:
    words = hashed_words(text)
    assert len(words) <= WORDS
    assert all(0 <= word < 1 << WORD_BITS for word in words)


@pytest.mark.parametrize("character", ["a ", "İ", "中", "ﷺ", "\ud800", "é", "ß"])
def test_no_text_gives_more_words_than_an_event_can_carry(character: str) -> None:
    assert len(hashed_words(character * TEXT_CHARACTERS)) <= WORDS


@given(TEXT.map(lambda text: text.ljust(TEXT_CHARACTERS, "x")), TEXT)
def test_only_the_beginning_counts(text: str, after: str) -> None:
    assert hashed_words(text[:TEXT_CHARACTERS] + after) == hashed_words(text)


@given(st.text(max_size=90), st.text(max_size=90))
def test_words_of_two_texts_joined(left: str, right: str) -> None:
    assert hashed_words(f"{left} {right}") == hashed_words(left) + hashed_words(right)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Fix the BUG", "fix THE bug"),
        ("STRASSE", "straße"),
        ("ΟΔΟΣ", "οδοσ"),  # its last letter has two small forms
        ("fix: the bug!", "fix the   bug"),
        ("don't", "don t"),
    ],
)
def test_words_with_equal_hashes(one: str, other: str) -> None:
    assert hashed_words(one) == hashed_words(other)


def test_words_with_different_hashes() -> None:
    assert len(set(hashed_words("fix fixes fixed file file_name 7 42"))) == 7
    assert hashed_words("a b") != hashed_words("b a")


def test_repetitions_are_kept() -> None:
    assert len(hashed_words("no no no")) == 3


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    assert hashed_words("修复bug吧") == (*hashed_words("修 复 bug"), *hashed_words("吧"))
    assert len(hashed_words("テスト、して")) == 5


@pytest.mark.parametrize("text", ["", "  \n", "?!…", "\ud800", "、。"])
def test_texts_without_words(text: str) -> None:
    assert hashed_words(text) == ()


def test_hashes_are_the_same_in_every_process() -> None:
    """What has been learnt from them outlives processes and releases."""
    assert hashed_words("Fix the failing test in utils.py, please") == (
        852079,
        212349,
        723059,
        916544,
        981414,
        519612,
        487636,
        288335,
    )
