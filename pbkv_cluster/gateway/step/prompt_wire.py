"""Prompts on the wire."""

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import types_pb2

_MAX_MESSAGES = 65_536  # in one prompt; each has a token at least


def prompt_from_wire(message: types_pb2.Prompt) -> Prompt:
    """Raises:
    InvalidArgument: the prompt has no form, too many messages, or tokens that are none.
    """
    match message.WhichOneof("form"):
        case "text":
            return TextPrompt(message.text)
        case "messages":
            checks.count("prompt.messages", len(message.messages.messages), _MAX_MESSAGES)
            return ChatPrompt(convert.chat_from_wire(message.messages))
        case "token_ids":
            return TokenPrompt(convert.packed_from_wire(message.token_ids, "prompt.token_ids"))
    raise InvalidArgument("prompt", "one of text, messages and token_ids must be set")
