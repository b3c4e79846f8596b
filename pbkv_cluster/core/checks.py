"""Checks of fields that another process has sent. Each raises `InvalidArgument` with the field's name as on the wire."""

import math
from collections.abc import Sized

from pbkv_cluster.core.errors import InvalidArgument

MAX_NAME_BYTES = 256


def not_empty(field: str, value: Sized) -> None:
    """A text or a list with something in it."""
    if not value:
        raise InvalidArgument(field, "must not be empty")


def text_bytes(field: str, text: str, most: int) -> str:
    """A text of at most `most` bytes in UTF-8."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        raise InvalidArgument(field, "is not valid Unicode") from None
    if size > most:
        raise InvalidArgument(field, f"at most {most} bytes, got {size}")
    return text


def name(field: str, value: str) -> str:
    """A name or an id that may be left out: at most `MAX_NAME_BYTES` bytes."""
    return text_bytes(field, value, MAX_NAME_BYTES)


def required_name(field: str, value: str) -> str:
    """A name or an id that must be there."""
    not_empty(field, value)
    return name(field, value)


def count(field: str, number: int, most: int) -> int:
    """A number of things, at most `most`."""
    if number > most:
        raise InvalidArgument(field, f"must be at most {most}, got {number}")
    return number


def in_range(field: str, value: int, least: int, most: int) -> int:
    """A number from `least` to `most`, both included."""
    if not least <= value <= most:
        raise InvalidArgument(field, f"must be from {least} to {most}, got {value}")
    return value


def seconds(field: str, value: float, most: float = math.inf) -> float:
    """A finite duration, at least 0 and at most `most` seconds."""
    if not math.isfinite(value) or not 0.0 <= value <= most:
        bound = "" if most == math.inf else f" and at most {most:g}"
        raise InvalidArgument(field, f"must be a finite number of seconds, at least 0{bound}, got {value:g}")
    return value


def share(field: str, value: float) -> float:
    """A share above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise InvalidArgument(field, f"must be above 0 and at most 1, got {value}")
    return value
