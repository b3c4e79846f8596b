"""An answer put together from its parts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.gateway.http.generation.parts import CallPart, Ended, Part, ShownToken, Started, TextPart


@dataclass(slots=True)
class Choice:
    """One answer."""

    texts: list[str] = field(default_factory=list)
    tokens: list[ShownToken] | None = None  # None: their log-probabilities were not asked for
    calls: list[FunctionCall] = field(default_factory=list)
    started: Started | None = None
    ended: Ended | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def end(self) -> Ended:
        """How it ended."""
        assert self.ended is not None, "a generation that raises nothing is complete"
        return self.ended


async def collect(parts: AsyncIterator[Part], choices: int) -> list[Choice]:
    """All answers.

    Raises:
        PbkvError: the request is wrong, or a step could not be run.
    """
    found = [Choice() for _ in range(choices)]
    async for part in parts:
        choice = found[part.choice]
        match part:
            case Started():
                choice.started = part
            case TextPart():
                choice.texts.append(part.text)
                if part.tokens is not None:
                    choice.tokens = [*(choice.tokens or ()), *part.tokens]
            case CallPart():
                choice.calls.append(part.call)
            case Ended():
                choice.ended = part
    return found
