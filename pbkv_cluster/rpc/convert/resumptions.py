"""What a client has of a step from an earlier call."""

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.resumption import Resumption
from pbkv_cluster.rpc.convert.tokens import packed_from_wire
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2


def resumption_to_wire(resumption: Resumption) -> workflow_pb2.Resumption:
    return workflow_pb2.Resumption(
        step=resumption.step, token_ids=types_pb2.PackedTokens(data=resumption.packed), characters=resumption.characters
    )


def resumption_from_wire(message: workflow_pb2.Resumption) -> Resumption:
    """Raises:
    InvalidArgument: a field is out of its range; named as on the wire.
    """
    step = message.step if message.HasField("step") else None
    if step is not None and step < 0:
        raise InvalidArgument("resume.step", f"must not be negative, got {step}")
    if message.characters < 0:
        raise InvalidArgument("resume.characters", f"must not be negative, got {message.characters}")
    return Resumption(step, packed_from_wire(message.token_ids, "resume.token_ids"), message.characters)
