"""Log-probabilities in the shapes of chat completions and of completions."""

from collections.abc import Iterable, Sequence
from typing import Any

from pbkv_cluster.gateway.http.generation.parts import ShownToken

_LEAST = -9999.0  # stands for the logarithm of zero, which JSON cannot write


def chat_logprobs(tokens: Sequence[ShownToken] | None) -> dict[str, Any] | None:
    """`logprobs` of a choice of a chat completion; None: they were not asked for."""
    if tokens is None:
        return None
    content = [
        {**_entry(token.text, token.logprob), "top_logprobs": [_entry(text, logprob) for text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ShownToken] | None, offset: int) -> dict[str, Any] | None:
    """`logprobs` of a choice of a completion.

    Args:
        tokens: None: they were not asked for.
        offset: characters of the tokens before.
    """
    if tokens is None:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [max(token.logprob, _LEAST) for token in tokens],
        "top_logprobs": [_by_text([(token.text, token.logprob), *token.top]) for token in tokens],
        "text_offset": offsets,
    }


def _by_text(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Of tokens with the same text, the likelier one."""
    found: dict[str, float] = {}
    for text, logprob in pairs:
        found[text] = max(logprob, found.get(text, _LEAST))
    return found


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, and nobody needs its bytes to be wrong.
    encoded = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, _LEAST), "bytes": encoded}
