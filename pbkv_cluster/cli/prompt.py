"""The options by which commands take a prompt, and how it is read."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pbkv_cluster.core.errors import InvalidArgument

Prompt = str | list[dict[str, Any]]

PromptText = Annotated[
    str | None, typer.Argument(help="Prompt; by default, or if it is -, read from standard input.", show_default=False)
]
Messages = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A conversation instead of a prompt: a JSON list of {role, content}, as chat completion APIs take it.",
        show_default=False,
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat", help="The prompt is a user's message: put it in the model's chat template, as instruct models expect."
    ),
]


def read_prompt(prompt: str | None, messages: Path | None, chat: bool) -> Prompt:
    """The prompt that the options give: a text, or a conversation.

    Raises:
        InvalidArgument: there is none, or more than one, or it cannot be read.
    """
    content = _read(prompt, messages)
    if not chat:
        return content
    if not isinstance(content, str):
        raise InvalidArgument("--chat", "cannot be combined with --messages, which is a conversation already")
    return [{"role": "user", "content": content}]


def _read(prompt: str | None, messages: Path | None) -> Prompt:
    if messages is not None:
        if prompt is not None:
            raise InvalidArgument("--messages", "cannot be combined with a prompt")
        return _read_messages(messages)
    if prompt not in (None, "-"):
        return str(prompt)
    if sys.stdin.isatty() and prompt is None:
        raise InvalidArgument("PROMPT", "is missing; give it as an argument, on standard input or as --messages FILE")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidArgument("PROMPT", f"standard input is not text: {error}") from error


def _read_messages(file: Path) -> list[dict[str, Any]]:
    from pbkv_cluster.core.text.chat_message import ChatMessage

    try:
        messages: Any = json.loads(file.read_text())
    except OSError as error:
        raise InvalidArgument("--messages", f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("--messages", f"{file} is not JSON: {error}") from error
    if not isinstance(messages, list) or not messages:
        raise InvalidArgument("--messages", f"{file} must hold a list of messages that is not empty")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidArgument("--messages", f"{file}: message {number} must be an object with a role and a content")
        try:
            ChatMessage.from_mapping(message, number)
        except InvalidArgument as error:
            raise InvalidArgument("--messages", f"{file}: {error.problem}") from error
    return messages
