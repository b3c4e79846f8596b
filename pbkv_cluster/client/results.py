"""The result of a step, put together from its events."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, StepEvent, Tokens


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step."""

    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    finish_reason: FinishReason
    step: int  # number in the workflow, from 0
    worker_id: str  # the worker that finished it
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, if they were asked for


@dataclass(slots=True)
class Collector:
    """Gathers a step's events into its result."""

    _accepted: Accepted | None = None
    _finished: Finished | None = None
    _text: list[str] = field(default_factory=list)
    _packed: bytearray = field(default_factory=bytearray)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, event: StepEvent) -> None:
        match event:
            case Accepted():
                self._accepted = event
            case Tokens():
                self._text.append(event.text)
                self._packed += event.packed
                self._logprobs += event.logprobs
            case Finished():
                self._finished = event

    def result(self) -> StepResult:
        """Raises:
        Unavailable: the stream ended before Finished.
        """
        if self._accepted is None or self._finished is None:
            raise Unavailable("the stream ended before the step did")
        usage, reason = self._finished.usage, self._finished.reason
        token_ids = tuple(tokens.unpack(bytes(self._packed)))
        logprobs = tuple(self._logprobs)
        return StepResult("".join(self._text), token_ids, usage, reason, self._accepted.step, usage.worker_id, logprobs)


def collect(events: Iterable[StepEvent]) -> StepResult:
    """Puts the events of one step together.

    Raises:
        Unavailable: there is no Finished among them.
    """
    collector = Collector()
    for event in events:
        collector.add(event)
    return collector.result()
