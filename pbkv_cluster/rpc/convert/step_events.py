"""Between the events of a step and their messages on the wire, and who takes them straight from a worker."""

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.receiver import ID_BYTES, Receiver
from pbkv_cluster.core.workflow.step_events import (
    Accepted,
    AllHandedOver,
    Finished,
    FinishReason,
    GatewayEvent,
    HandedOver,
    Invitation,
    StepEvent,
    Tokens,
)
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


def gateway_event_to_wire(event: GatewayEvent) -> workflow_pb2.StepEvent | None:
    """The message of an event; None: it needs none, as its client has had it from the worker."""
    messages = workflow_pb2.StepEvent
    match event:
        case HandedOver(Finished()) | AllHandedOver():
            return messages(handed_over=messages.HandedOver())
        case HandedOver():
            return None
        case Invitation():
            invitation = messages.Invitation(address=event.address, ticket=event.ticket, tenant=event.tenant)
            return messages(invitation=invitation)
        case _:
            return step_event_to_wire(event)


def gateway_event_from_wire(message: workflow_pb2.StepEvent) -> StepEvent | Invitation | AllHandedOver | None:
    """As `step_event_from_wire`, for those that have named a receiver."""
    match message.WhichOneof("event"):
        case "invitation":
            invitation = message.invitation
            return Invitation(invitation.address, invitation.ticket, invitation.tenant)
        case "handed_over":
            return AllHandedOver()
    return step_event_from_wire(message)


def receiver_to_wire(receiver: Receiver) -> types_pb2.Receiver:
    return types_pb2.Receiver(id=receiver.id, call=receiver.call)


def receiver_from_wire(message: types_pb2.Receiver) -> Receiver:
    """Raises:
    InvalidArgument: its id is too short to be a secret, or too long.
    """
    if len(message.id) != ID_BYTES:
        raise InvalidArgument("receiver.id", f"must have {ID_BYTES} bytes, got {len(message.id)}")
    return Receiver(message.id, message.call)
