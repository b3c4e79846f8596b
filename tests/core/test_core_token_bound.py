"""Texts with too many tokens are found with little work."""

import pytest

from pbkv_cluster.core.text.token_bound import has_more_tokens


class Tokenizer:
    """Counts a token for every byte, and how much it had to do."""

    def __init__(self) -> None:
        self.tokens = 0

    def count(self, text: str) -> int:
        self.tokens += len(text.encode())
        return len(text.encode())


@pytest.mark.parametrize("character", ["x", "é", "🙂"])
@pytest.mark.parametrize("texts", [1, 7])
def test_the_work_is_that_of_the_tokens_that_are_allowed(character: str, texts: int) -> None:
    tokenizer = Tokenizer()
    assert has_more_tokens([character * (1_000_000 // texts)] * texts, 100_000, tokenizer.count)
    assert tokenizer.tokens < 200_000


@pytest.mark.parametrize("character", ["x", "é", "🙂"])
def test_a_text_that_may_fit_is_not_refused(character: str) -> None:
    tokenizer = Tokenizer()
    assert not has_more_tokens([character * (400_000 // len(character.encode()))], 100_000, tokenizer.count)
    assert tokenizer.tokens == 0, "it is small enough to be tokenised at once"


def test_a_cut_through_a_token_does_not_count() -> None:
    """Here a token has 8,192 characters at most, so that a cut can add one."""
    assert not has_more_tokens(["x" * 1_000_000], 124, lambda text: -(-len(text) // 8192))
