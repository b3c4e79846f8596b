"""Sampling parameters."""

from pbkv_cluster.core.sampling import SamplingOptions, SamplingParams
from pbkv_cluster.rpc.convert.tokens import packed_from_wire
from pbkv_cluster.rpc.v1 import types_pb2


def sampling_to_wire(params: SamplingParams) -> types_pb2.Sampling:
    return sampling_options_to_wire(params)


def sampling_options_to_wire(params: SamplingOptions | SamplingParams) -> types_pb2.Sampling:
    """What is None is left out."""
    return types_pb2.Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        stop=params.stop,
        ignore_eos=params.ignore_eos,
        forced_output=None if params.forced_output is None else types_pb2.PackedTokens(data=params.forced_output),
        top_logprobs=params.top_logprobs,
    )


def sampling_options_from_wire(message: types_pb2.Sampling) -> SamplingOptions:
    """Raises:
    InvalidArgument: the forced output does not hold whole token ids.
    """
    forced = packed_from_wire(message.forced_output, "sampling.forced_output") if message.HasField("forced_output") else None
    return SamplingOptions(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
        forced_output=forced,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
    )


def sampling_from_wire(message: types_pb2.Sampling) -> SamplingParams:
    """Complete parameters. A field that the message leaves out gets its default; the seed, a random value.

    Raises:
        InvalidArgument: a value is out of its range.
    """
    return sampling_options_from_wire(message).complete()
