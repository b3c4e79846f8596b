"""Between the events of a step and their messages on the wire."""

from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, StepEvent, Tokens
from pbkv_cluster.rpc.convert.tokens import logprobs_from_wire, logprobs_to_wire
from pbkv_cluster.rpc.convert.usage import usage_from_wire, usage_to_wire
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, workflow_pb2

_REASON_TO_WIRE: dict[FinishReason, types_pb2.FinishReason] = {
    FinishReason.UNSPECIFIED: types_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: types_pb2.FINISH_REASON_CANCELLED,
}
_REASON_FROM_WIRE = {wire: reason for reason, wire in _REASON_TO_WIRE.items()}


def finish_reason_to_wire(reason: FinishReason) -> types_pb2.FinishReason:
    return _REASON_TO_WIRE[reason]


def finish_reason_from_wire(reason: types_pb2.FinishReason) -> FinishReason:
    """The reason; UNSPECIFIED for one that this version does not know."""
    return _REASON_FROM_WIRE.get(reason, FinishReason.UNSPECIFIED)


def step_event_to_wire(event: StepEvent) -> workflow_pb2.StepEvent:
    messages = workflow_pb2.StepEvent
    match event:
        case Accepted():
            accepted = messages.Accepted(step=event.step, worker_id=event.worker_id, prompt_tokens=event.prompt_tokens)
            return messages(accepted=accepted)
        case Tokens():
            # The one message per token: to set fields in place costs a third of making three messages.
            message = messages()
            message.tokens.token_ids.data, message.tokens.text = event.packed, event.text
            if event.logprobs:
                message.tokens.logprobs.extend(logprobs_to_wire(event.logprobs))
            return message
        case Finished():
            usage = usage_to_wire(event.usage)
            return messages(finished=messages.Finished(reason=_REASON_TO_WIRE[event.reason], usage=usage))


def tokens_from_wire(message: workflow_pb2.StepEvent.Tokens | worker_pb2.RunStepEvent.Tokens) -> Tokens:
    return Tokens(message.token_ids.data, message.text, logprobs_from_wire(message.logprobs) if message.logprobs else ())


def step_event_from_wire(message: workflow_pb2.StepEvent) -> StepEvent | None:
    """The event in a message; None for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "accepted":
            return Accepted(message.accepted.step, message.accepted.worker_id, message.accepted.prompt_tokens)
        case "tokens":
            return tokens_from_wire(message.tokens)
        case "finished":
            reason = finish_reason_from_wire(message.finished.reason)
            return Finished(reason, usage_from_wire(message.finished.usage))
    return None
