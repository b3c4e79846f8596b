"""What all sections of the configuration have in common, and the checks of values that pydantic does not know."""

from collections.abc import Callable
from typing import Any

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
