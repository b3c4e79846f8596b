"""Words of a text as small numbers: enough to learn from, and no text.

Events carry them instead of prompts and replies. Hashing is deterministic across processes; a fixed number of bits makes some
words collide, which costs a learner little.
"""

import re

from xxhash import xxh3_64_intdigest

WORD_BITS = 20
WORDS = 256  # of one text at most
TEXT_CHARACTERS = 300  # of a task or a reply: its beginning says what it is

# Han, Hiragana and Katakana are written without spaces: there each character is a word.
_UNSPACED = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def hashed_words(text: str) -> tuple[int, ...]:
    """The words of a text's first characters, in order, repeats included: numbers below 2^20. Case does not matter."""
    mask = (1 << WORD_BITS) - 1
    # Folding may make a word longer, and mark letters with what is no part of a word: words are told apart before.
    found = _WORD.findall(text[:TEXT_CHARACTERS])[:WORDS]
    return tuple(xxh3_64_intdigest(word.casefold().encode()) & mask for word in found)
