"""One step in flight: what it is to do, and how far it is."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pbkv_cluster.core import tokens
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.receiver import Receiver
from pbkv_cluster.core.workflow.step_events import Tokens
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.step.prompt_reader import TokenizedPrompt
from pbkv_cluster.gateway.step.state import NEXT_STATES, IllegalTransition, StepState
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.rpc.tracing import NO_SPAN, Span
from pbkv_cluster.store.block_map import WorkerKey


class Cancellable(Protocol):
    """What somebody else does for a step."""

    def cancel(self) -> None:
        """Has what the step holds there freed. Harmless when repeated."""
        ...


@dataclass(frozen=True, slots=True)
class StepSpec:
    """What a step is to do, checked and complete."""

    workflow: OpenWorkflow
    number: int  # in its workflow, from 0
    agent: str
    call_site: str
    parent_step: int | None
    tenant: str  # whose blocks these are
    priority: int
    prompt: TokenizedPrompt
    sampling: SamplingParams
    available_tokens: int
    receiver: Receiver | None = None  # who takes the output straight from the worker, if it can


class Step:
    """One step in flight. Only `transition` writes its state."""

    def __init__(self, arrived_at: float, on_final: Callable[["Step"], None]) -> None:
        """Args:
        arrived_at: on the clock's `now`.
        on_final: called once, when the step has reached a final state.
        """
        self._state = StepState.ACCEPTED
        self._on_final = on_final
        self.ended = asyncio.Event()  # wakes those who wait on behalf of the step: its state is final
        self.arrived_at = arrived_at
        self.workflow: OpenWorkflow | None = None  # None until it is found
        self.spec: StepSpec | None = None  # None until the request is read
        self.worker: Worker | None = None  # the latest
        self.stream: Cancellable | None = None  # from that worker, or from the gateway that holds the workflow
        self.sent = bytearray()  # packed output that has been passed on
        self.sent_chars = 0  # text that has been passed on
        self.beginning = ""  # of that text, as much as STEP_FINISHED has words of
        self.hidden = b""  # of the prompt's last token, as the worker reports it at the end
        self.first_token_at: float | None = None  # on the clock's `now`
        self.retries = 0
        self.failed_workers = set[WorkerKey]()  # that it has tried in vain
        self.refusals = 0  # by workers with full queues
        self.deadline: float | None = None  # on the clock's `now`: when nobody waits for it any more
        self.expired = False  # it was given up at its deadline
        self.runs_elsewhere = False  # another gateway runs it
        self.span: Span = NO_SPAN  # of its whole time

    @property
    def state(self) -> StepState:
        return self._state

    @property
    def is_final(self) -> bool:
        return self._state.is_final

    def transition(self, state: StepState) -> None:
        """Enters the next state, see `StepState`. On the way to FAILED and CANCELLED the worker's stream is cancelled.

        Raises:
            IllegalTransition: `state` does not follow the present one.
        """
        if state not in NEXT_STATES[self._state]:
            raise IllegalTransition(self._state, state)
        self._state = state
        if not state.is_final:
            return
        self.ended.set()
        if state is not StepState.FINISHED and self.stream is not None:
            self.stream.cancel()
        self._on_final(self)

    def cancel(self) -> None:
        """Cancels the step. No effect once its state is final."""
        if not self.is_final:
            self.transition(StepState.CANCELLED)

    def fail(self) -> None:
        """Gives the step up. No effect once its state is final."""
        if not self.is_final:
            self.transition(StepState.FAILED)

    def expire(self) -> None:
        """Gives the step up because its deadline has passed. No effect once its state is final."""
        if not self.is_final:
            self.expired = True
            self.transition(StepState.FAILED)

    def place(self, worker: Worker, stream: Cancellable) -> None:
        """Notes that the step has been sent to `worker`."""
        self.worker, self.stream = worker, stream
        self.transition(StepState.PLACED)

    def add_output(self, output: Tokens, skip_chars: int, now: float) -> str:
        """Notes output that goes to the client; returns its text without the `skip_chars` that the client has already."""
        if self._state is not StepState.STREAMING:
            self.transition(StepState.STREAMING)
        if output.packed and self.first_token_at is None:
            self.first_token_at = now
        self.sent += output.packed
        text = output.text[skip_chars:]
        if self.sent_chars < TEXT_CHARACTERS:
            self.beginning += text[: TEXT_CHARACTERS - self.sent_chars]
        self.sent_chars += len(text)
        return text

    def complete(self, usage: Usage, now: float) -> Usage:
        """Adds to the last worker's usage what only the gateway knows.

        A lost worker takes its usage with it: cache and prefill counts are those of the worker that finished, times and
        output those of the whole step.
        """
        assert self.spec is not None
        usage.prompt_tokens = self.spec.prompt.tokens
        usage.available_tokens = self.spec.available_tokens
        usage.generated_tokens = tokens.count(bytes(self.sent))
        usage.ttft_s = 0.0 if self.first_token_at is None else self.first_token_at - self.arrived_at
        usage.total_s = now - self.arrived_at
        usage.retries = self.retries
        usage.worker_id = self.worker.id if self.worker is not None else ""
        usage.settle()
        return usage

    def end_span(self) -> None:
        """Ends the step's span, with what is known of it by now."""
        if self.span is NO_SPAN:
            return
        worker = "" if self.worker is None else self.worker.id
        if (spec := self.spec) is not None:
            self.span.set(workflow=spec.workflow.id, step=spec.number, agent=spec.agent, workload=spec.workflow.workload)
            self.span.set(prompt_tokens=spec.prompt.tokens, available_tokens=spec.available_tokens, retries=self.retries)
            self.span.set(worker=worker, output_tokens=tokens.count(bytes(self.sent)))
        elif worker:
            self.span.set(worker=worker)
        self.span.end("" if self.state is StepState.FINISHED else self.state.value)
