"""Packed token ids."""

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.rpc.v1 import types_pb2


def packed_from_wire(message: types_pb2.PackedTokens, field: str) -> bytes:
    """Reads packed token ids.

    Raises:
        InvalidArgument: `field` does not hold whole int32 ids.
    """
    if len(message.data) % TOKEN_BYTES:
        raise InvalidArgument(f"{field}.data", f"{len(message.data)} bytes are not a whole number of int32 token ids")
    return message.data
