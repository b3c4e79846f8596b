"""What all sections of the configuration have in common, and the checks of values that pydantic does not know."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from pbkv_cluster.core.errors import InvalidArgument

_MOST = 1e12  # of any number: above all that makes sense, and small enough for every conversion that follows
_MAX_TEXT = 4096  # characters: the longest path of a file


class Section(BaseModel):
    """A section of the configuration: its fields are bounded, and those that are unknown are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` as true, and true would pass for the number 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise ValueError("must be a number, not true or false")
        return value

    @field_validator("*")
    @classmethod
    def _is_bounded(cls, value: Any) -> Any:
        if isinstance(value, int | float) and abs(value) > _MOST:
            raise ValueError(f"must be at most {_MOST:g}")
        if isinstance(value, str):
            if len(value) > _MAX_TEXT:
                raise ValueError(f"must have at most {_MAX_TEXT} characters, has {len(value)}")
            if not value.isprintable():
                raise ValueError("must not contain control characters")
        return value


def checked(check: Callable[[], str]) -> str:
    """The result of a check; pydantic reports a ValueError, and names the field itself."""
    try:
        return check()
    except InvalidArgument as error:
        raise ValueError(error.problem) from None


def redis_url(url: str) -> str:
    """Checks a URL of Redis; a ValueError says what it must be."""
    form = "redis://[[USER]:PASSWORD@]HOST:PORT[/DB], rediss://… or unix://PATH"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port  # raises for a port that is none
    except ValueError:
        raise ValueError(
            f"must be {form}; a port is from 0 to 65535, and / # ? @ in a password are written as %2F and so on"
        ) from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"must be {form}")
    if "@" in parts.path + parts.fragment or (port == 0):
        raise ValueError(f"must be {form}; characters such as / # ? @ in a password are written as %2F and so on")
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("must name the socket's path, as in unix:///run/redis.sock")
        return url
    if not host:
        raise ValueError(f"must name a host: {form}")
    database = parts.path.strip("/")
    if database and not database.isdigit():
        raise ValueError(f"the database after the slash must be a number, in {form}")
    return url
