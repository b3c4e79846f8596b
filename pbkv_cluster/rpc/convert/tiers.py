"""Tiers of memory, numbers of tokens in each, and how fast they are loaded from each."""

from collections.abc import Iterable, Mapping
from typing import cast

from pbkv_cluster.core.load_speeds import LoadSpeed, LoadSpeeds
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2

# The one table: a tier needs an entry of the same name in `core.usage.Tier` and in `types.proto`, and nothing here.
_TO_WIRE = {tier: cast("types_pb2.Tier", types_pb2.Tier.Value(f"TIER_{tier.name}")) for tier in Tier}
_FROM_WIRE = {wire: tier for tier, wire in _TO_WIRE.items()}


def tier_to_wire(tier: Tier) -> types_pb2.Tier:
    return _TO_WIRE[tier]


def tier_from_wire(tier: types_pb2.Tier) -> Tier:
    """The tier of the wire's value.

    Raises:
        KeyError: this version does not know the tier.
    """
    return _FROM_WIRE[tier]


def tiers_to_wire(tokens: Mapping[Tier, int]) -> list[types_pb2.TierTokens]:
    return [types_pb2.TierTokens(tier=_TO_WIRE[tier], tokens=count) for tier, count in tokens.items()]


def tiers_from_wire(tokens: Iterable[types_pb2.TierTokens]) -> dict[Tier, int]:
    return {_FROM_WIRE[entry.tier]: entry.tokens for entry in tokens}


def load_speeds_to_wire(speeds: LoadSpeeds) -> worker_pb2.LoadSpeeds:
    return worker_pb2.LoadSpeeds(
        prefill_token_s=speeds.prefill_token_s,
        loads=[
            worker_pb2.LoadSpeeds.Load(tier=_TO_WIRE[tier], token_s=load.token_s, queue_s=load.queue_s)
            for tier, load in speeds.loads.items()
        ],
    )


def load_speeds_from_wire(message: worker_pb2.LoadSpeeds) -> LoadSpeeds:
    return LoadSpeeds(
        message.prefill_token_s, {_FROM_WIRE[load.tier]: LoadSpeed(load.token_s, load.queue_s) for load in message.loads}
    )
