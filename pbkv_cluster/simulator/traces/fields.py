"""Checked access to the fields of one decoded line of a trace."""

from dataclasses import dataclass
from typing import Any

MAX_TEXT_BYTES = 256  # longest name of a workflow or an agent that the gateway accepts
MAX_LIST = 1 << 16  # entries of a list: above those of any prompt, whether its entries are segments, blocks or words
# Of one prompt or reply: above any context window, but low enough that a corrupt count cannot fill the memory.
MAX_TOKENS = 16 << 20
MAX_TIME_S = 1e11
MAX_PAUSE_S = 1e9
_MAX_TOKEN_ID = 2**31


class FieldError(Exception):
    """A field is missing or wrong; the message names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object of a line. Every method returns one field, or raises `FieldError` if it is not of the method's type."""

    value: Any
    prefix: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.value, dict):
            raise FieldError(self.prefix.rstrip(".") or "line", f"must be an object, got {_shown(self.value)}")

    def path(self, name: str) -> str:
        """The field's path from the top level of the line."""
        return self.prefix + name

    def text(self, name: str) -> str:
        """A string of 1 to 256 bytes of UTF-8."""
        value = self._required(name)
        if not isinstance(value, str) or not value:
            raise FieldError(self.path(name), f"must be a string that is not empty, got {_shown(value)}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise FieldError(self.path(name), "is not valid Unicode") from None
        if size > MAX_TEXT_BYTES:
            raise FieldError(self.path(name), f"must take at most {MAX_TEXT_BYTES} bytes, takes {size}")
        return value

    def optional_text(self, name: str) -> str:
        """A string as in `text`, or "" if the field is absent, null or empty."""
        return "" if self.value.get(name) in (None, "") else self.text(name)

    def count(self, name: str, most: int) -> int:
        """A whole number from 0 to `most`."""
        value = self._required(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise FieldError(self.path(name), f"must be a whole number, got {_shown(value)}")
        if not 0 <= value <= most:
            raise FieldError(self.path(name), f"must be from 0 to {most}, got {_shown(value)}")
        return value

    def optional_count(self, name: str, most: int) -> int | None:
        """A whole number as in `count`, or None if the field is absent or null."""
        return None if self.value.get(name) is None else self.count(name, most)

    def optional_flag(self, name: str) -> bool:
        """True or false; false if the field is absent or null."""
        value = self.value.get(name)
        if not isinstance(value, bool | None):
            raise FieldError(self.path(name), f"must be true, false or null, got {_shown(value)}")
        return bool(value)

    def optional_seconds(self, name: str) -> float:
        """Seconds from 0 to 1e9; 0.0 if the field is absent or null."""
        return self._optional_number(name, MAX_PAUSE_S, "1e9") or 0.0

    def optional_time(self, name: str) -> float | None:
        """Seconds from 0 to 1e11; None if the field is absent or null."""
        return self._optional_number(name, MAX_TIME_S, "1e11")

    def optional_token_ids(self, name: str) -> None:
        """Checks a list of token ids, which may be absent or null. Nothing reads them."""
        value = self.value.get(name)
        if value is None:
            return
        if not isinstance(value, list) or len(value) > MAX_TOKENS:
            raise FieldError(self.path(name), f"must be a list of at most {MAX_TOKENS} token ids")
        for position, entry in enumerate(value):
            if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry < _MAX_TOKEN_ID:
                raise FieldError(f"{self.path(name)}[{position}]", f"must be a token id, got {_shown(entry)}")

    def optional_numbers(self, name: str, below: int) -> tuple[int, ...]:
        """Whole numbers from 0 to `below` - 1; none if the field is absent or null."""
        value = self.value.get(name)
        if value is None:
            return ()
        for position, entry in enumerate(bounded_list(self.path(name), value)):
            if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry < below:
                problem = f"must be a whole number from 0 to {below - 1}, got {_shown(entry)}"
                raise FieldError(f"{self.path(name)}[{position}]", problem)
        return tuple(value)

    def objects(self, name: str) -> list["Fields"]:
        """A list of at most `MAX_LIST` objects."""
        values = bounded_list(self.path(name), self._required(name))
        return [Fields(entry, f"{self.path(name)}[{position}].") for position, entry in enumerate(values)]

    def _optional_number(self, name: str, most: float, written: str) -> float | None:
        value = self.value.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FieldError(self.path(name), f"must be a number of seconds or null, got {_shown(value)}")
        if not 0 <= value <= most:
            raise FieldError(self.path(name), f"must be from 0 to {written} seconds, got {_shown(value)}")
        return float(value)

    def _required(self, name: str) -> Any:
        if name not in self.value:
            raise FieldError(self.path(name), "is missing")
        return self.value[name]


def bounded_list(path: str, value: Any) -> list[Any]:
    """A list of at most `MAX_LIST` entries.

    Raises:
        FieldError: it is something else, or longer.
    """
    if not isinstance(value, list):
        raise FieldError(path, f"must be a list, got {_shown(value)}")
    if len(value) > MAX_LIST:
        raise FieldError(path, f"must have at most {MAX_LIST} entries, has {len(value)}")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a number beyond all bounds"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
