"""Steps that run on other workers, on the wire. Times travel as ages, since every machine has a clock of its own."""

from collections.abc import Iterable

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.workflow.remote_steps import RemoteStepBegan, RemoteStepEnded, RemoteStepEvent
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2

_FIELD = "remote_steps"


def remote_steps_to_wire(events: Iterable[RemoteStepEvent], now: float) -> list[worker_pb2.RemoteStep]:
    """Messages of events.

    Args:
        events: in order.
        now: seconds, on the clock of the events.
    """
    return [_to_wire(event, now) for event in events]


def remote_steps_from_wire(messages: Iterable[worker_pb2.RemoteStep], now: float) -> list[RemoteStepEvent]:
    """The events of messages, with times on the receiver's clock.

    Args:
        messages: in order.
        now: seconds, on the receiver's clock.

    Raises:
        InvalidArgument: one makes no sense.
    """
    return [_from_wire(message, now) for message in messages]


def _to_wire(event: RemoteStepEvent, now: float) -> worker_pb2.RemoteStep:
    message = worker_pb2.RemoteStep(index=event.index, step=event.number, age_s=max(now - event.at, 0.0), length=event.length)
    if isinstance(event, RemoteStepEnded):
        message.ended.tenant, message.ended.output.data = event.tenant, event.output
        message.ended.SetInParent()
        return message
    began = worker_pb2.RemoteStep.Began(
        agent_id=event.agent,
        parent_step=event.parent,
        tenant=event.tenant,
        came_from=event.came_from if event.came_from >= 0 else None,
        follows=event.follows,
        rest=types_pb2.PackedTokens(data=event.tokens),
    )
    message.began.CopyFrom(began)
    return message


def _from_wire(message: worker_pb2.RemoteStep, now: float) -> RemoteStepEvent:
    at = now - checks.seconds(f"{_FIELD}.age_s", message.age_s)
    for field, value in (("index", message.index), ("step", message.step), ("length", message.length)):
        if value < 0:
            raise InvalidArgument(f"{_FIELD}.{field}", f"must not be negative, got {value}")
    match message.WhichOneof("event"):
        case "began":
            began = message.began
            came_from = began.came_from if began.HasField("came_from") else -1
            if (began.follows > 0) != (came_from >= 0) or began.follows < 0:
                raise InvalidArgument(f"{_FIELD}.began.follows", f"is {began.follows}, and came_from {came_from}")
            checks.required_name(f"{_FIELD}.began.agent_id", began.agent_id)
            return RemoteStepBegan(
                message.index,
                message.step,
                began.agent_id,
                began.parent_step if began.HasField("parent_step") else None,
                began.tenant,
                came_from,
                began.follows,
                _blocks("began.rest", began.rest),
                at,
                message.length,
            )
        case "ended":
            output = _blocks("ended.output", message.ended.output)
            return RemoteStepEnded(message.index, message.step, message.ended.tenant, output, at, message.length)
        case _:
            raise InvalidArgument(f"{_FIELD}.event", "must be set")


def _blocks(field: str, packed: types_pb2.PackedTokens) -> bytes:
    if len(packed.data) % BLOCK_BYTES:
        raise InvalidArgument(f"{_FIELD}.{field}.data", f"{len(packed.data)} bytes are not a whole number of blocks")
    return packed.data
