"""Reads OTLP attributes. An error names the attribute that is wrong."""

from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument


class Attributes:
    """The attributes of a span, an event or a resource. Empty values count as absent."""

    def __init__(self, pairs: Iterable[KeyValue]) -> None:
        self._values = {pair.key: pair.value for pair in pairs}

    def name(self, *keys: str) -> str:
        """A name or an id: the value of the first of `keys` that is present, or "".

        Raises:
            InvalidArgument: it is not a string, or too long.
        """
        for key in keys:
            value = self._values.get(key)
            if value is None or value.WhichOneof("value") is None:
                continue
            if not value.HasField("string_value"):
                raise InvalidArgument(key, f"must be a string, got {_kind(value)}")
            if name := checks.name(key, value.string_value):
                return name
        return ""

    def count(self, *keys: str) -> int:
        """A number of tokens: the value of the first of `keys` that is present, or 0.

        Raises:
            InvalidArgument: it is not an integer, or negative.
        """
        for key in keys:
            value = self._values.get(key)
            if value is None or value.WhichOneof("value") is None:
                continue
            if not value.HasField("int_value"):
                raise InvalidArgument(key, f"must be an integer, got {_kind(value)}")
            if value.int_value < 0:
                raise InvalidArgument(key, f"must not be negative, got {value.int_value}")
            return value.int_value
        return 0

    def value(self, key: str) -> Any:
        """The attribute's value as JSON would represent it; None if it is absent."""
        value = self._values.get(key)
        return None if value is None else _plain(value)


def _kind(value: AnyValue) -> str:
    return str(value.WhichOneof("value")).removesuffix("_value")


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
