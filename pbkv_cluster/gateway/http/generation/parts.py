"""The parts of an answer: one `Started` for each choice, text and calls, one `Ended`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.core.usage import Usage


@dataclass(frozen=True, slots=True)
class Started:
    """A choice has become a step, which has been placed."""

    choice: int
    workflow: str
    agent: str
    step: int  # number in the workflow
    prompt_tokens: int


class ShownToken(NamedTuple):
    """An output token with the log-probabilities that were asked for."""

    text: str
    logprob: float
    top: Sequence[tuple[str, float]]  # the likeliest tokens in its place


@dataclass(frozen=True, slots=True)
class TextPart:
    """More text of a choice."""

    choice: int
    text: str
    tokens: Sequence[ShownToken] | None = None  # generated since the part before; None: they were not asked for


@dataclass(frozen=True, slots=True)
class CallPart:
    """A whole tool call of a choice."""

    choice: int
    index: int  # among the calls of the choice
    call: FunctionCall


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete."""

    choice: int
    cut: bool  # at max_tokens or at the end of the context
    stop: str  # the stop string that ended it; empty: none
    calls: int  # tool calls in it
    usage: Usage


Part = Started | TextPart | CallPart | Ended
