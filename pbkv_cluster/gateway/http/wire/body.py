"""A request's body: read within bounds, then checked against a model."""

import asyncio
import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from pbkv_cluster.core.errors import PbkvError, ResourceExhausted
from pbkv_cluster.gateway.http.wire.json_bounds import check_values
from pbkv_cluster.gateway.http.wire.problems import BodyTooLarge, UnsupportedMediaType
from pbkv_cluster.gateway.http.wire.wrong_fields import problem_of_body

M = TypeVar("M", bound="Body")

_ON_THREAD_BYTES = 64 << 10  # bodies from this size on are checked on a thread

T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]
"""A list in a body. Its check ends at the first wrong item: an error for each would cost a thousand times the body's size."""

_to_json = json.JSONEncoder(allow_nan=False, check_circular=False).encode


def _finite(value: T) -> T:
    """Refuses NaN and numbers beyond a float, which the parser lets through where any value is allowed: they are no JSON."""
    if isinstance(value, dict | list | float):
        try:
            _to_json(value)
        except ValueError:
            raise PydanticCustomError("not_json", "a number in it is NaN or beyond a float") from None
    return value


def _forget(value: object) -> None:
    """What nothing is done with is not kept for as long as its request runs."""


AnyJson = Annotated[Any, AfterValidator(_finite)]
UnusedJson = Annotated[AnyJson, AfterValidator(_forget)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]


class Body(BaseModel):
    """A JSON object of a request. Fields that no dialect knows are refused: a misspelt one would change nothing in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BodyReader:
    """Reads bodies, of which all that are being read take a bounded number of bytes together."""

    def __init__(self, max_bytes: int, max_total_bytes: int) -> None:
        """Args:
        max_bytes: of one body.
        max_total_bytes: of all that are being read.
        """
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._total_bytes = 0

    async def read(self, request: Request) -> bytes:
        """The body as it is.

        Raises:
            PbkvError: it is too large, not said to be JSON, or there is no room for it now.
            ClientDisconnect: the client went away.
        """
        check_json(request)
        return await self.read_any(request)

    async def read_any(self, request: Request) -> bytes:
        """A body of whatever kind.

        Raises:
            PbkvError: it is too large, or there is no room for it now.
            ClientDisconnect: the client went away.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        taken = 0
        try:
            async for chunk in request.stream():
                taken += len(chunk)
                self._total_bytes += len(chunk)
                if taken > self._max_bytes:
                    raise self._too_large()
                if self._total_bytes > self._max_total_bytes:
                    raise ResourceExhausted(f"bodies that are being read have {self._max_total_bytes} bytes already")
                body += chunk
        finally:
            self._total_bytes -= taken
        return bytes(body)

    def _too_large(self) -> PbkvError:
        return BodyTooLarge(f"the body has more than {self._max_bytes} bytes (gateway.http_max_body_bytes)")


def check_json(request: Request) -> None:
    """A page in a browser can send other kinds of bodies to this server without asking, but not JSON.

    Raises:
        UnsupportedMediaType: the body is not said to be JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"content-type must be application/json, got {kind[:64] or 'none'}")


async def parse(model: type[M], body: bytes) -> M:
    """The body as a model.

    Raises:
        NotJson: it is not JSON.
        InvalidField: a field is missing, unknown or wrong; names it.
        BodyTooLarge: it holds too many values.
    """
    if len(body) < _ON_THREAD_BYTES:
        return _parse(model, body)
    return await asyncio.to_thread(_parse, model, body)


def _parse(model: type[M], body: bytes) -> M:
    check_values(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise problem_of_body(error, body) from None
