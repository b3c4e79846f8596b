"""What a client gets back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2


class FinishReason(StrEnum):
    """Why an answer ended."""

    UNSPECIFIED = "unspecified"
    STOP = "stop"  # the model's end-of-sequence token, or a stop string
    LENGTH = "length"  # max_tokens, or the end of the model's context
    CANCELLED = "cancelled"  # the workflow ended


@dataclass(frozen=True, slots=True)
class Accepted:
    """The step has a place to run."""

    step: int  # position in the workflow, from 0
    worker_id: str  # where it starts; `usage.worker_id` says where it finished
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Output, as it comes. The text lags behind the tokens while it could be the start of a stop string."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the output."""

    reason: FinishReason
    usage: Usage


StepEvent = Accepted | Tokens | Finished


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step."""

    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    finish_reason: FinishReason
    step: int  # position in the workflow, from 0
    worker_id: str  # the worker that finished it


def event_from_wire(message: workflow_pb2.StepEvent) -> StepEvent | None:
    """The event in a message; None for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "accepted":
            return Accepted(message.accepted.step, message.accepted.worker_id, message.accepted.prompt_tokens)
        case "tokens":
            return Tokens(tuple(tokens.unpack(message.tokens.token_ids.data)), message.tokens.text)
        case "finished":
            reason = types_pb2.FinishReason.Name(message.finished.reason).removeprefix("FINISH_REASON_").lower()
            return Finished(FinishReason(reason), convert.usage_from_wire(message.finished.usage))
    return None


@dataclass(slots=True)
class Collector:
    """Gathers a step's events into its result."""

    _accepted: Accepted | None = None
    _finished: Finished | None = None
    _text: list[str] = field(default_factory=list)
    _token_ids: list[int] = field(default_factory=list)

    def add(self, event: StepEvent) -> None:
        match event:
            case Accepted():
                self._accepted = event
            case Tokens():
                self._text.append(event.text)
                self._token_ids.extend(event.token_ids)
            case Finished():
                self._finished = event

    def result(self) -> StepResult:
        """Raises:
        Unavailable: the stream broke off before the end.
        """
        if self._accepted is None or self._finished is None:
            raise Unavailable("the stream ended before the step did")
        usage, reason = self._finished.usage, self._finished.reason
        return StepResult("".join(self._text), tuple(self._token_ids), usage, reason, self._accepted.step, usage.worker_id)


def collect(events: Iterable[StepEvent]) -> StepResult:
    """The result that the events of one step add up to.

    Raises:
        Unavailable: they break off before the end.
    """
    collector = Collector()
    for event in events:
        collector.add(event)
    return collector.result()
