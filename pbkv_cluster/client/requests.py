"""Plain values to the messages of a client's calls."""

import operator
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2

# Role and content; optional: name, tool_call_id and tool_calls. Content is a string or a list of parts of type text.
Message = Mapping[str, Any]
Prompt = str | bytes | Sequence[int] | Sequence[Message]


class StepOptions(TypedDict, total=False):
    """Keyword arguments of a step, all optional. What is left out takes the gateway's default."""

    call_site: str  # name of the prompt template
    parent_step: int  # number of the step that this one follows, where a workflow branches; default: the latest
    priority: int  # higher goes first among the waiting; default 0
    tenant: str  # whose cached blocks the step shares; default: the workflow's
    max_tokens: int  # at least 1; default 128
    temperature: float  # 0 is greedy; default 0
    top_p: float  # in (0, 1]; default 1
    seed: int  # same seed, same tokens; default: drawn
    stop: str | Sequence[str]  # the output ends before any of these
    ignore_eos: bool  # go on past the model's end-of-sequence token
    forced_output: bytes | Sequence[int]  # token ids to decode instead of choosing; for replay
    top_logprobs: int  # tell log-probabilities of each output token and of this many likeliest, at most 20; default: none
    step_id: str  # at most 256 bytes; a step that is submitted again with its id is not run again; default: drawn
    timeout_s: float  # seconds that the whole step may take; default: no limit


def prompt_message(prompt: Prompt) -> types_pb2.Prompt:
    """The message of a prompt: a str is text, bytes are packed token ids, a sequence holds chat messages or token ids.

    Raises:
        InvalidArgument: it is none of these.
    """
    if isinstance(prompt, str):
        return types_pb2.Prompt(text=prompt)
    if not isinstance(prompt, bytes) and len(prompt) and isinstance(prompt[0], Mapping):
        return types_pb2.Prompt(messages=_chat(cast(Sequence[Message], prompt)))
    return types_pb2.Prompt(token_ids=_packed("prompt.token_ids", cast("bytes | Sequence[int]", prompt)))


def start_request(
    workflow_id: str, workload: str, tenant: str, lease_s: float, step_graph: StepGraph | None
) -> workflow_pb2.StartWorkflowRequest:
    """The message that opens a workflow. An id is drawn here if there is none, so that the call may be made twice.

    Raises:
        InvalidArgument: a value cannot be written on the wire.
    """
    try:
        return workflow_pb2.StartWorkflowRequest(
            workflow_id=workflow_id or uuid.uuid4().hex,
            workload=workload,
            tenant=tenant,
            lease_s=lease_s,
            step_graph=None if step_graph is None else convert.step_graph_to_wire(step_graph),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument("workflow", str(error)) from error


def step_request(workflow_id: str, agent: str, prompt: Prompt, options: StepOptions) -> workflow_pb2.SubmitStepRequest:
    """Raises:
    InvalidArgument: a value cannot be written on the wire.
    """
    try:
        return workflow_pb2.SubmitStepRequest(
            workflow_id=workflow_id,
            agent_id=agent,
            call_site=options.get("call_site", ""),
            parent_step=options.get("parent_step"),
            prompt=prompt_message(prompt),
            sampling=_sampling(options),
            priority=options.get("priority", 0),
            tenant=options.get("tenant", ""),
            step_id=options.get("step_id") or uuid.uuid4().hex,
        )
    except (TypeError, ValueError) as error:
        # Protobuf's own message names the field, for a value of the wrong type and for one out of its range.
        raise InvalidArgument("step", str(error)) from error


def new_call_id() -> str:
    return uuid.uuid4().hex


def _sampling(options: StepOptions) -> types_pb2.Sampling:
    stop = options.get("stop", ())
    forced = options.get("forced_output")
    packed = None if forced is None else _packed("sampling.forced_output", forced)
    # Without a limit, a replay decodes the whole forced output.
    max_tokens = options.get("max_tokens", None if packed is None else tokens.count(packed.data))
    return types_pb2.Sampling(
        max_tokens=max_tokens,
        temperature=options.get("temperature"),
        top_p=options.get("top_p"),
        seed=options.get("seed"),
        stop=[stop] if isinstance(stop, str) else stop,
        ignore_eos=options.get("ignore_eos", False),
        forced_output=packed,
        top_logprobs=options.get("top_logprobs"),
    )


def _packed(field: str, ids: bytes | Sequence[int]) -> types_pb2.PackedTokens:
    if isinstance(ids, bytes):
        return types_pb2.PackedTokens(data=ids)
    try:
        return types_pb2.PackedTokens(data=tokens.pack([operator.index(each) for each in ids]))
    except (TypeError, OverflowError) as error:
        raise InvalidArgument(field, f"must be whole numbers of 32 bits: {error}") from error


def _chat(messages: Sequence[Message]) -> types_pb2.ChatMessages:
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidArgument("prompt.messages", f"message {position} must be a mapping, got {message!r}")
    return convert.chat_to_wire([ChatMessage.from_mapping(message, position) for position, message in enumerate(messages)])
