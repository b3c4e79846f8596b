"""Prompts on the wire."""

import json
from collections.abc import Mapping
from typing import Any

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.gateway.step.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import types_pb2

_MAX_MESSAGES = 65_536  # in one prompt; each has a token at least
_MAX_TOOLS = 4096  # in one prompt


def prompt_to_wire(prompt: Prompt) -> types_pb2.Prompt:
    match prompt:
        case TextPrompt(text):
            return types_pb2.Prompt(text=text)
        case ChatPrompt(messages, tools, answer):
            chat = convert.chat_to_wire(messages)
            chat.answer = answer
            chat.tools.extend(map(json.dumps, tools))
            return types_pb2.Prompt(messages=chat)
        case TokenPrompt(packed):
            return types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=packed))


def prompt_from_wire(message: types_pb2.Prompt) -> Prompt:
    """Raises:
    InvalidArgument: the prompt has no form, too many messages, or tokens or tools that are none.
    """
    match message.WhichOneof("form"):
        case "text":
            return TextPrompt(message.text)
        case "messages":
            checks.count("prompt.messages", len(message.messages.messages), _MAX_MESSAGES)
            checks.count("prompt.messages.tools", len(message.messages.tools), _MAX_TOOLS)
            chat = message.messages
            return ChatPrompt(convert.chat_from_wire(chat), tuple(map(_tool, chat.tools)), chat.answer)
        case "token_ids":
            return TokenPrompt(convert.packed_from_wire(message.token_ids, "prompt.token_ids"))
    raise InvalidArgument("prompt", "one of text, messages and token_ids must be set")


def _tool(text: str) -> Mapping[str, Any]:
    try:
        tool = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("prompt.messages.tools", f"is not JSON: {error}") from error
    if not isinstance(tool, dict):
        raise InvalidArgument("prompt.messages.tools", f"must be JSON objects, got {type(tool).__name__}")
    return tool
