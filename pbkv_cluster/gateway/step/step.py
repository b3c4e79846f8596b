"""Steps in flight: what is known of each, and what its end has to put right, however it ends."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.worker_pool import Worker
from pbkv_cluster.gateway.step.prompts import Prompt
from pbkv_cluster.gateway.workflow.sessions import Session
from pbkv_cluster.rpc.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class StepSpec:
    """What a step is to do, checked and complete."""

    session: Session
    number: int  # in its workflow, from 0
    agent_id: str
    call_site: str
    parent_step: int | None
    tenant: str  # whose blocks these are
    priority: int
    prompt: Prompt
    sampling: SamplingParams
    available_tokens: int  # that an infinite cache would have had


@dataclass(eq=False, slots=True)
class Step:
    """One step in flight: how far it is."""

    arrived: float  # on the clock's `now`
    spec: StepSpec | None = None  # None until the request is checked
    worker: Worker | None = None
    call: Any = None  # the stream from the worker
    sent: bytearray = field(default_factory=bytearray)  # packed output that the client has
    sent_chars: int = 0  # text that the client has
    beginning: str = ""  # of that text, no more than events tell words of
    hidden: bytes = b""  # as the worker told it with the end
    first_token: float | None = None  # on the clock's `now`
    retries: int = 0
    finished: bool = False  # a worker has brought it to its end
    closed: bool = False  # nothing is left to put right
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # its workflow has ended

    def end(self) -> None:
        """Cancels the step because its workflow ends."""
        self.ended.set()
        self.cancel_call()

    def cancel_call(self) -> None:
        if self.call is not None:
            self.call.cancel()

    def take(self, output: worker_pb2.RunStepEvent.Tokens, skip_chars: int, now: float) -> str:
        """Notes output that goes to the client; returns its text without the `skip_chars` that the client has already."""
        if output.token_ids.data and self.first_token is None:
            self.first_token = now
        self.sent += output.token_ids.data
        text = output.text[skip_chars:]
        if self.sent_chars < TEXT_CHARACTERS:
            self.beginning += text[: TEXT_CHARACTERS - self.sent_chars]
        self.sent_chars += len(text)
        return text

    def complete(self, usage: Usage, now: float) -> Usage:
        """Adds to the last worker's usage what only the gateway knows.

        A worker that was lost takes its usage with it: the counts are of the worker that finished, the times to first token
        and in all, and the output, are of the whole.
        """
        assert self.spec is not None
        usage.prompt_tokens = self.spec.prompt.tokens
        usage.available_tokens = self.spec.available_tokens
        usage.generated_tokens = tokens.count(bytes(self.sent))
        usage.ttft_s = 0.0 if self.first_token is None else self.first_token - self.arrived
        usage.total_s = now - self.arrived
        usage.retries = self.retries
        usage.worker_id = self.worker.id if self.worker is not None else ""
        usage.settle()
        return usage


class Admission:
    """The bound on steps in flight."""

    def __init__(self, max_steps: int, decisions: Decisions) -> None:
        self._max = max_steps
        self._decisions = decisions
        self._steps: set[Step] = set()

    def __len__(self) -> int:
        return len(self._steps)

    def admit(self, now: float) -> Step:
        """Raises:
        ResourceExhausted: too many steps are in flight.
        """
        if len(self._steps) >= self._max:
            self._decisions[Reason.STEP_REFUSED] += 1
            raise ResourceExhausted(f"{self._max} steps are in flight already")
        step = Step(now)
        self._steps.add(step)
        return step

    def release(self, step: Step) -> None:
        self._steps.discard(step)
