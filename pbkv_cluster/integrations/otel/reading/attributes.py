"""Reads OTLP attributes. An error names the attribute that is wrong."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument

_MAX_TOKENS = (1 << 31) - 1
_MAX_DIGITS = 10  # of a count written as text
_MAX_CHARACTERS = 4 << 20  # of JSON
_MAX_SHOWN = 40  # characters of a wrong value in an error


class Attributes:
    """The attributes of a span, an event or a resource. Empty values count as absent."""

    def __init__(self, pairs: Iterable[KeyValue], json_attributes: Iterable[str] = ()) -> None:
        """Args:
        pairs: as OTLP has them.
        json_attributes: attributes that hold an object as JSON: member x of attribute a is read as "a.x".
        """
        self._values = {pair.key: pair.value for pair in pairs}
        self._prefixes = tuple(f"{name}." for name in json_attributes)
        self._members: dict[str, dict[str, Any]] = {}  # of attributes in JSON, once one has been asked for

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def name(self, *keys: str) -> str:
        """A name or an id: the value of the first of `keys` that is present, or "".

        Raises:
            InvalidArgument: it is not a string, or too long.
        """
        for key in keys:
            value = self._get(key)
            if value is None:
                continue
            if not isinstance(value, str):
                raise InvalidArgument(key, f"must be a string, got {_kind(value)}")
            if name := checks.name(key, value):
                return name
        return ""

    def id(self, *keys: str) -> str:
        """As `name`, but whole numbers count too: some applications number their conversations."""
        for key in keys:
            value = self._get(key)
            if value is None:
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
            if name := self.name(key):
                return name
        return ""

    def text(self, *keys: str) -> str:
        """The first of `keys` that holds a text of any length, or ""."""
        for key in keys:
            value = self._get(key)
            if isinstance(value, str) and value:
                return value
        return ""

    def count(self, *keys: str) -> int:
        """A number of tokens: the value of the first of `keys` that is present, or 0. It may be text or a double.

        Raises:
            InvalidArgument: it is no whole number, or negative, or impossibly large.
        """
        for key in keys:
            value = self._get(key)
            if value is None or value == "":
                continue
            if (number := _whole(value)) is None:
                raise InvalidArgument(key, f"must be a whole number, got {_shown(value)}")
            if number < 0:
                raise InvalidArgument(key, f"must not be negative, got {number}")
            if number > _MAX_TOKENS:
                raise InvalidArgument(key, f"must be at most {_MAX_TOKENS}, got {number}")
            return number
        return 0

    def value(self, key: str) -> Any:
        """The attribute's value as JSON would represent it; None if it is absent."""
        value = self._values.get(key)
        return None if value is None else _plain(value)

    def _get(self, key: str) -> Any:
        """The value of an attribute, or of a member of one in JSON; None if it is absent."""
        if key in self._values:
            return self.value(key)
        if not key.startswith(self._prefixes):
            return None
        holder, _, member = key.partition(".")
        if holder not in self._members:
            self._members[holder] = _object(self.value(holder))
        return self._members[holder].get(member)


def json_value(key: str, text: str) -> Any:
    """The value of a text of JSON.

    Raises:
        InvalidArgument: it is not JSON, or too long.
    """
    if len(text) > _MAX_CHARACTERS:
        raise InvalidArgument(key, f"must have at most {_MAX_CHARACTERS} characters, got {len(text)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(key, f"is not JSON: {error}") from error


def _object(value: Any) -> dict[str, Any]:
    """The members of an object; texts that UTF-8 cannot represent are mended."""
    if isinstance(value, str):
        try:
            value = json_value("metadata", value)
        except InvalidArgument:
            return {}
    if not isinstance(value, dict):
        return {}
    return {key: each.encode(errors="replace").decode() if isinstance(each, str) else each for key, each in value.items()}


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        sign, digits = (text[:1], text[1:]) if text[:1] == "-" else ("", text)
        return int(sign + digits) if digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, list | dict) else repr(value)[:_MAX_SHOWN]


def _kind(value: Any) -> str:
    return {bool: "bool", int: "int", float: "double", list: "array", dict: "kvlist"}.get(type(value), type(value).__name__)


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_plain(each) for each in value.array_value.values]
        case "kvlist_value":
            return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
        case kind:
            return getattr(value, kind)
