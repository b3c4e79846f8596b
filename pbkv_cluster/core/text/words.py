"""Hashed words of a text, which events carry instead of prompts and replies.

The hash is the same in every process. It has so few bits that some words collide, which costs a learner little.
"""

import re

from xxhash import xxh3_64_intdigest

WORD_BITS = 20
WORDS = 256  # most of one text
TEXT_CHARACTERS = 300  # of a task or a reply that are looked at: its beginning shows what it is

# Han, Hiragana and Katakana are written without spaces: each of their characters counts as a word.
_UNSPACED = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def hashed_words(text: str) -> tuple[int, ...]:
    """Hashes, below 2^20, of the words in a text's first characters, in order and with repetitions. Case does not matter."""
    return all_hashed_words(text[:TEXT_CHARACTERS])[:WORDS]


def all_hashed_words(text: str) -> tuple[int, ...]:
    """The same of all words of a text."""
    mask = (1 << WORD_BITS) - 1
    # Words are found before their case is folded: folding can add characters, some of which are not part of a word.
    return tuple(xxh3_64_intdigest(word.casefold().encode()) & mask for word in _WORD.findall(text))
