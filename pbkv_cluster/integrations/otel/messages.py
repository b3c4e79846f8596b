"""Hashed words of the messages of a model call. The text itself does not leave this module."""

import json
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.words import hashed_words

_MAX_CHARACTERS = 4 << 20  # of messages in JSON


def words_of(key: str, messages: Any, role: str | None = None) -> tuple[int, ...]:
    """The hashed words of the first message that has text.

    Args:
        key: the attribute's, for errors.
        messages: a list of messages with `parts` or `content`, or one message, or either as JSON.
        role: only messages of this role; None: of any role.

    Raises:
        InvalidArgument: they are not messages. SDKs that truncate long attributes send such values.
    """
    if isinstance(messages, str):
        messages = _from_json(key, messages)
    if isinstance(messages, dict):
        messages = [messages]
    if not isinstance(messages, list):
        raise InvalidArgument(key, f"must be a list of messages, got {type(messages).__name__}")
    for message in messages:
        if not isinstance(message, dict):
            raise InvalidArgument(key, f"must hold messages, got {type(message).__name__}")
        if role in (None, message.get("role")) and (text := _text(message)):
            return hashed_words(text)
    return ()


def _from_json(key: str, text: str) -> Any:
    if len(text) > _MAX_CHARACTERS:
        raise InvalidArgument(key, f"must have at most {_MAX_CHARACTERS} characters, got {len(text)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(key, f"is not JSON: {error}") from error


def _text(message: dict[str, Any]) -> str:
    content = message.get("parts", message.get("content"))
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("content", part.get("text")) for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return " ".join(part for part in parts if isinstance(part, str))
