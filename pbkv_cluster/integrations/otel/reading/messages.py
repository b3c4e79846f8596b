"""Messages of a model call, and hashed words of them. Only a recording asks for the text itself, and hashes it as well."""

from collections.abc import Iterator
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.words import TEXT_CHARACTERS, hashed_words
from pbkv_cluster.integrations.otel.reading.attributes import Attributes, json_value
from pbkv_cluster.integrations.otel.reading.dialects import Form, Messages

_MAX_NUMBERED = 256  # messages, and parts of one, that are looked at for words
_MAX_WHOLE = 1 << 16  # likewise, of whole prompts


def messages_at(attributes: Attributes, source: Messages, whole: bool = False) -> Any:
    """What `source` names; None if it is absent. Unless it is wanted whole, as much as `words_of` needs."""
    match source.form:
        case Form.MESSAGES:
            return attributes.value(source.key)
        case Form.TEXT:
            text = attributes.text(source.key)
            return [{"content": text}] if text else None
        case Form.NUMBERED:
            return list(_numbered(attributes, source, whole)) or None


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


def _numbered(attributes: Attributes, source: Messages, whole: bool) -> Iterator[dict[str, str]]:
    for number in range(_MAX_WHOLE if whole else _MAX_NUMBERED):
        prefix = f"{source.key}.{number}"
        role = attributes.text(f"{prefix}.{source.role}")
        content = attributes.text(f"{prefix}.{source.content}")
        if not content and source.parts:
            content = _joined_parts(attributes, f"{prefix}.{source.parts}", source.part_text, whole)
        if not role and not content:
            return
        yield {"role": role, "content": content}


def _joined_parts(attributes: Attributes, prefix: str, name: str, whole: bool) -> str:
    parts: list[str] = []
    for number in range(_MAX_NUMBERED):
        text = attributes.text(f"{prefix}.{number}.{name}")
        parts.append(text)
        if not text or (not whole and sum(map(len, parts)) > TEXT_CHARACTERS):
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
