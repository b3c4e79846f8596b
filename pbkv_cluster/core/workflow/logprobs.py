"""How likely the model took its output tokens to be."""

from dataclasses import dataclass

MAX_TOP = 20  # likeliest tokens that are told for one output token


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one output token. Natural logarithms of probabilities, before temperature and top_p."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens in its place, likeliest first
