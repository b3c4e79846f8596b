"""What a client is told of a body that its model refuses: one field by its path, and what is wrong with it."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.gateway.http.wire.problems import InvalidField, NotJson

UNSUPPORTED = "unsupported_parameter"  # kind of error of a validator, and code of the answer

_MAX_SHOWN = 200  # characters of a wrong value that are shown
_KIND = "type"  # field that says what an object is


def problem_of_body(error: ValidationError, body: bytes) -> PbkvError:
    """What is wrong with a body."""
    errors = error.errors(include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return NotJson(f"the body is not JSON: {errors[0]['msg']}")
    value = from_json(body)
    path, worst = _worst([(_path(each["loc"], each["type"], value), each) for each in errors])
    if worst["type"] == "extra_forbidden":
        return InvalidField(path, f"unknown field {path!r}", code="unknown_parameter")
    if worst["type"] == UNSUPPORTED:
        return InvalidField(path, f"{path} is {worst['msg']}", code=UNSUPPORTED)
    if worst["type"] == "missing":
        return InvalidField(path, f"{path} is required", code="missing_required_parameter")
    return InvalidField(path, f"{path or 'the body'}: {worst['msg']}{_shown(worst)}", code="invalid_value")


def _worst(found: list[tuple[str, Any]]) -> tuple[str, Any]:
    """Of a field that may be one of several things, the error whose check went deepest is the one that was meant.

    An object of a kind that is not known has other fields, too; their errors follow from its kind. One of a kind that some of
    the things have is none of the others.
    """
    path, worst = max(found, key=lambda each: len(each[0]))
    parent = path.rpartition(".")[0]
    kinds = [each for each in found if each[0] == f"{parent}.{_KIND}" and each[1]["type"] == "literal_error"]
    others = {each[1]["loc"][:-1] for each in kinds}
    meant = [each for each in found if each[0].startswith(f"{parent}.") and each[1]["loc"][:-1] not in others]
    if kinds and meant:
        return max(meant, key=lambda each: len(each[0]))
    return kinds[0] if kinds else (path, worst)


def _path(location: tuple[int | str, ...], problem: str, body: Any) -> str:
    """`messages[0].content` of a location. Names of union members, which pydantic puts between, are not in the body."""
    path, value, last = "", body, len(location) - 1
    for position, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict):
            inner = value.get(part)
            is_member = position < last and value.get(_KIND) == part and not isinstance(inner, dict | list)
            if (part in value and not is_member) or (position == last and problem == "missing"):
                path += f".{part}" if path else part
                value = inner
    return path


def _shown(problem: Any) -> str:
    value = problem.get("input")
    if isinstance(value, str | int | float | bool) or value is None:
        return f", got {value!r}"[:_MAX_SHOWN]
    return ""
