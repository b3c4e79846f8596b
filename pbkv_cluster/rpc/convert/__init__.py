"""Conversions between the project's values and their messages on the wire: one file for each kind of value.

`…_to_wire` makes a message. `…_from_wire` reads one, and raises `InvalidArgument`, which names the field, for one that makes no
sense.
"""

from pbkv_cluster.rpc.convert.chat import chat_from_wire, chat_to_wire
from pbkv_cluster.rpc.convert.events import event_from_wire, event_to_wire
from pbkv_cluster.rpc.convert.forecasts import forecasts_from_wire, forecasts_to_wire
from pbkv_cluster.rpc.convert.remote_steps import remote_steps_from_wire, remote_steps_to_wire
from pbkv_cluster.rpc.convert.resumptions import resumption_from_wire, resumption_to_wire
from pbkv_cluster.rpc.convert.sampling import (
    sampling_from_wire,
    sampling_options_from_wire,
    sampling_options_to_wire,
    sampling_to_wire,
)
from pbkv_cluster.rpc.convert.step_events import (
    finish_reason_from_wire,
    finish_reason_to_wire,
    gateway_event_from_wire,
    gateway_event_to_wire,
    receiver_from_wire,
    receiver_to_wire,
    step_event_from_wire,
    step_event_to_wire,
    tokens_from_wire,
)
from pbkv_cluster.rpc.convert.step_graphs import step_graph_from_wire, step_graph_to_wire
from pbkv_cluster.rpc.convert.tiers import (
    load_speeds_from_wire,
    load_speeds_to_wire,
    tier_from_wire,
    tier_to_wire,
    tiers_from_wire,
    tiers_to_wire,
)
from pbkv_cluster.rpc.convert.tokens import logprobs_from_wire, logprobs_to_wire, packed_from_wire
from pbkv_cluster.rpc.convert.tool_calls import tool_call_from_wire, tool_call_to_wire
from pbkv_cluster.rpc.convert.usage import usage_from_wire, usage_to_wire

__all__ = [
    "chat_from_wire",
    "chat_to_wire",
    "event_from_wire",
    "event_to_wire",
    "finish_reason_from_wire",
    "finish_reason_to_wire",
    "forecasts_from_wire",
    "forecasts_to_wire",
    "gateway_event_from_wire",
    "gateway_event_to_wire",
    "load_speeds_from_wire",
    "load_speeds_to_wire",
    "logprobs_from_wire",
    "logprobs_to_wire",
    "packed_from_wire",
    "receiver_from_wire",
    "receiver_to_wire",
    "remote_steps_from_wire",
    "remote_steps_to_wire",
    "resumption_from_wire",
    "resumption_to_wire",
    "sampling_from_wire",
    "sampling_options_from_wire",
    "sampling_options_to_wire",
    "sampling_to_wire",
    "step_event_from_wire",
    "step_event_to_wire",
    "step_graph_from_wire",
    "step_graph_to_wire",
    "tier_from_wire",
    "tier_to_wire",
    "tiers_from_wire",
    "tiers_to_wire",
    "tokens_from_wire",
    "tool_call_from_wire",
    "tool_call_to_wire",
    "usage_from_wire",
    "usage_to_wire",
]
