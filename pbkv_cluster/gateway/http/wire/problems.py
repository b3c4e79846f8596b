"""Errors as HTTP statuses, with the types and codes of OpenAI's API; each dialect writes them in its own shape."""

import logging
import math
from dataclasses import dataclass

from pbkv_cluster.core import errors
from pbkv_cluster.core.security.headers import CHALLENGE

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1  # where nobody knows better


class InvalidField(errors.InvalidArgument):
    """A field of a body is wrong; the message says all, and `field` is its path."""

    def __init__(self, field: str, message: str, code: str = "invalid_value") -> None:
        errors.PbkvError.__init__(self, message)
        self.field = field
        self.problem = message
        self.code = code


class NotJson(errors.PbkvError):
    """The body is not JSON."""


class UnsupportedMediaType(errors.PbkvError):
    """The body is not said to be JSON."""


class BodyTooLarge(errors.PbkvError):
    """The body has too many bytes."""


class BadGateway(errors.PbkvError):
    """A server that the request was passed on to has broken the connection, or answered with what is no HTTP."""


class NoSuchModel(errors.NotFound):
    """The model that a request names is not the one that is served."""


class NoToolCall(errors.PbkvError):
    """The model has not written the tool call that the request demands."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told of an error."""

    status: int
    type: str  # of OpenAI's
    message: str
    param: str | None = None  # the field that is wrong
    code: str | None = None
    retry_after_s: float | None = None  # an estimate; None: nobody knows

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        if self.status == 413:
            return {"connection": "close"}  # the rest of the body is not read
        if self.status == 401:
            return {"connection": "close", "www-authenticate": CHALLENGE}  # nor is this body
        return {"retry-after": str(max(math.ceil(self.retry_after_s or 0), RETRY_AFTER_S))} if self.status in (429, 503) else {}


_INVALID = "invalid_request_error"
# The fields of a step, as plain values name them, in a request.
_FIELDS = {
    "prompt.text": "prompt",
    "prompt.token_ids": "prompt",
    "workflow_id": "x-pbkv-workflow",
    "agent_id": "x-pbkv-agent",
    "call_site": "x-pbkv-call-site",
    "workload": "x-pbkv-workload",
    "tenant": "x-pbkv-tenant",
}


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error. Any but a `PbkvError` is a defect, and logged with its traceback."""
    text = str(error)
    match error:
        case InvalidField():
            return Problem(400, _INVALID, text, error.field or None, error.code)
        case errors.PromptTooLong():
            return Problem(400, _INVALID, text, _field(error.field), "context_length_exceeded")
        case errors.InvalidArgument():
            field = _field(error.field)
            return Problem(400, _INVALID, f"{field}: {error.problem}", field, "invalid_value")
        case NotJson():
            return Problem(400, _INVALID, text, None, "invalid_json")
        case UnsupportedMediaType():
            return Problem(415, _INVALID, text, None, "unsupported_media_type")
        case BodyTooLarge():
            return Problem(413, _INVALID, text, None, "request_too_large")
        case NoSuchModel():
            return Problem(404, _INVALID, text, "model", "model_not_found")
        case NoToolCall():  # the request is right; with another seed, it may succeed
            return Problem(422, _INVALID, text, "tool_choice", "no_tool_call")
        case errors.NotFound():
            return Problem(404, _INVALID, text, None, "not_found")
        case errors.FailedPrecondition():
            return Problem(400, _INVALID, text, None, "unsupported_value")
        case errors.ResourceExhausted():
            code = "rate_limit_exceeded" if isinstance(error, errors.LimitExceeded) else "overloaded"
            return Problem(429, "rate_limit_error", text, None, code, error.retry_after_s)
        case errors.Unauthenticated():
            return Problem(401, _INVALID, text, None, "invalid_api_key")
        case errors.PermissionDenied():
            return Problem(403, _INVALID, text, None, "permission_denied")
        case BadGateway():
            return Problem(502, "server_error", text, None, "bad_gateway")
        case errors.Unavailable():
            return Problem(503, "server_error", text, None, "unavailable")
        case errors.DeadlineExceeded():
            return Problem(504, "server_error", text, None, "timeout")
    log.error("a request failed", exc_info=error)
    return Problem(500, "server_error", f"internal error: {type(error).__name__}", None, "internal_error")


def _field(field: str) -> str:
    return _FIELDS.get(field) or field.removeprefix("prompt.").removeprefix("sampling.")
