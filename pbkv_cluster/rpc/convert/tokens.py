"""Token ids, packed, and their log-probabilities."""

from collections.abc import Iterable, Sequence

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.rpc.v1 import types_pb2


def packed_from_wire(message: types_pb2.PackedTokens, field: str) -> bytes:
    """Reads packed token ids.

    Raises:
        InvalidArgument: `field` does not hold whole int32 ids.
    """
    if len(message.data) % TOKEN_BYTES:
        raise InvalidArgument(f"{field}.data", f"{len(message.data)} bytes are not a whole number of int32 token ids")
    return message.data


def logprobs_to_wire(logprobs: Iterable[TokenLogprobs]) -> list[types_pb2.TokenLogprobs]:
    return [
        types_pb2.TokenLogprobs(
            logprob=each.logprob, top_ids=[token for token, _ in each.top], top_logprobs=[logprob for _, logprob in each.top]
        )
        for each in logprobs
    ]


def logprobs_from_wire(messages: Sequence[types_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    """Of what both lists have: one that is longer than the other is cut."""
    return tuple(TokenLogprobs(each.logprob, tuple(zip(each.top_ids, each.top_logprobs, strict=False))) for each in messages)
