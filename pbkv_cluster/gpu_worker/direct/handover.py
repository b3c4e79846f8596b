"""The output of one step, as it is handed over to a receiver, and as the gateway is told of it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, StepEvent, Tokens
from pbkv_cluster.gpu_worker.direct.receivers import ConnectedReceiver
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.step_wire import finished_to_wire, tokens_of, tokens_to_wire
from pbkv_cluster.rpc.convert import step_event_to_wire
from pbkv_cluster.rpc.v1 import worker_pb2


class Handover:
    """One step, whose receiver is connected."""

    def __init__(self, receiver: ConnectedReceiver, request: worker_pb2.RunStepRequest, worker_id: str, clock: Clock) -> None:
        """Greets the receiver.

        Raises:
            ReceiverLost: it has gone.
        """
        self._receiver = receiver
        self._direct = request.direct
        self._call = request.direct.receiver.call
        self._worker_id = worker_id
        self._clock = clock
        self._arrived_at = clock.now() - request.direct.age_s  # at the gateway
        self._first_token_s: float | None = None
        self._generated = 0
        self._is_told = False  # the gateway, of the first output
        self._untold: list[Tokens] = []
        prompt_tokens = len(request.prompt.data) // TOKEN_BYTES
        self._send(Accepted(request.step, worker_id, prompt_tokens))

    async def room(self) -> None:
        """Waits while the client takes nothing.

        Raises:
            ReceiverLost: it has gone.
        """
        await self._receiver.room()

    def tell(self, output: Output) -> Sequence[worker_pb2.RunStepEvent]:
        """What the gateway is told of an output."""
        told: list[worker_pb2.RunStepEvent] = []
        if output.tokens or output.text:
            self._untold.append(tokens_of(output))
        has_ended = output.finished is not None
        if self._untold and (has_ended or (output.tokens and not self._is_told)):
            self._is_told = True
            told.append(worker_pb2.RunStepEvent(handed_over=tokens_to_wire(_joined(self._untold))))
            self._untold.clear()
        if has_ended:
            told.append(finished_to_wire(output))
        return told

    def send(self, output: Output) -> None:
        """Sends the receiver an output.

        Raises:
            ReceiverLost: it has gone.
        """
        if output.tokens or output.text:
            if output.tokens and self._first_token_s is None:
                self._first_token_s = self._clock.now() - self._arrived_at
            self._generated += len(output.tokens)
            self._send(tokens_of(output))
        if output.finished is not None:
            assert output.usage is not None
            self._send(Finished(output.finished, self._complete(output.usage)))

    def _send(self, event: StepEvent) -> None:
        self._receiver.send(self._call, step_event_to_wire(event))

    def _complete(self, usage: Usage) -> Usage:
        """The usage record with what the gateway adds to its own."""
        complete = replace(
            usage,
            captured=dict(usage.captured),
            available_tokens=self._direct.available_tokens,
            generated_tokens=self._generated,
            ttft_s=self._first_token_s or 0.0,
            total_s=self._clock.now() - self._arrived_at,
            retries=self._direct.retries,
            worker_id=self._worker_id,
        )
        complete.settle()
        return complete


def _joined(parts: Sequence[Tokens]) -> Tokens:
    logprobs = tuple(chain.from_iterable(each.logprobs for each in parts))
    return Tokens(b"".join(each.packed for each in parts), "".join(each.text for each in parts), logprobs)
