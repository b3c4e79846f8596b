"""Hashed words of the messages of a model call. The text itself does not leave this module."""

from collections.abc import Iterator
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.words import TEXT_CHARACTERS, hashed_words
from pbkv_cluster.integrations.otel.reading.attributes import Attributes, json_value
from pbkv_cluster.integrations.otel.reading.dialects import Form, Messages

_MAX_NUMBERED = 256  # messages, and parts of one


def messages_at(attributes: Attributes, source: Messages) -> Any:
    """What `source` names, for `words_of`; None if it is absent."""
    match source.form:
        case Form.MESSAGES:
            return attributes.value(source.key)
        case Form.TEXT:
            text = attributes.text(source.key)
            return [{"content": text}] if text else None
        case Form.NUMBERED:
            return list(_numbered(attributes, source)) or None


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
        messages = json_value(key, messages)
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


def _numbered(attributes: Attributes, source: Messages) -> Iterator[dict[str, str]]:
    for number in range(_MAX_NUMBERED):
        prefix = f"{source.key}.{number}"
        role = attributes.text(f"{prefix}.{source.role}")
        content = attributes.text(f"{prefix}.{source.content}")
        if not content and source.parts:
            content = _joined_parts(attributes, f"{prefix}.{source.parts}", source.part_text)
        if not role and not content:
            return
        yield {"role": role, "content": content}


def _joined_parts(attributes: Attributes, prefix: str, name: str) -> str:
    parts: list[str] = []
    for number in range(_MAX_NUMBERED):
        text = attributes.text(f"{prefix}.{number}.{name}")
        parts.append(text)
        if not text or sum(map(len, parts)) > TEXT_CHARACTERS:
            break
    return " ".join(filter(None, parts))


def _text(message: dict[str, Any]) -> str:
    content = message.get("parts", message.get("content"))
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("content", part.get("text")) for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return " ".join(part for part in parts if isinstance(part, str))
