"""Whether a text has too many tokens, found without tokenising more of it than it takes to tell."""

from collections.abc import Callable, Iterable

# A text of so many bytes for each token is tokenised at once: however short its tokens are, that is little work.
_BYTES_PER_TOKEN = 4
_PIECE_CHARACTERS = 16_384
_CUT_TOKENS = 16  # that a cut may add, where it goes through a longer token


def has_more_tokens(texts: Iterable[str], max_tokens: int, count: Callable[[str], int]) -> bool:
    """Whether texts certainly have more than `max_tokens` tokens together. False does not mean that they have not.

    Work and memory are those of `max_tokens` tokens, not those of the texts' own: a few million emoji, each of several tokens,
    take a tokenizer half a minute.

    Args:
        texts: tokenised one by one, in pieces, until it is certain.
        max_tokens: that are allowed.
        count: number of tokens of a text.
    """
    texts = list(texts)
    if sum(len(text.encode()) for text in texts) <= _BYTES_PER_TOKEN * max_tokens:
        return False
    tokens = 0
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARACTERS):
            tokens += max(count(text[start : start + _PIECE_CHARACTERS]) - _CUT_TOKENS, 0)
            if tokens > max_tokens:
                return True
    return False
