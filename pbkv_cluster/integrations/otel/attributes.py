"""Reads OTLP attributes. Whatever is wrong with one is told under its own name."""

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
        """The first of `keys` that is there, a name or an id; "" if none is.

        Raises:
            InvalidArgument: it is no string, or too long.
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
        """The first of `keys` that is there, a number of tokens; 0 if none is.

        Raises:
            InvalidArgument: it is no integer, or negative.
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
        """The attribute as JSON would have it; None if it is not there."""
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
