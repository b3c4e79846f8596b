"""Words of a text as small numbers: enough to learn from, and no text.

Events carry them instead of prompts and replies. Hashing is deterministic across processes; a fixed number of bits makes some
words collide, which costs a learner little.
"""

import re

from xxhash import xxh3_64_intdigest

WORD_BITS = 20
TEXT_CHARACTERS = 300  # of a task or a reply: its beginning says what it is

_WORD = re.compile(r"\w+")


def hashed_words(text: str) -> tuple[int, ...]:
    """The words of a text's first characters, in order, repeats included: numbers below 2^20. Upper and lower case are alike."""
    mask = (1 << WORD_BITS) - 1
    return tuple(xxh3_64_intdigest(word.encode()) & mask for word in _WORD.findall(text[:TEXT_CHARACTERS].lower()))
