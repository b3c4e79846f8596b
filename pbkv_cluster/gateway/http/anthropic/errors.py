"""Errors as Anthropic's API writes them."""

from typing import Any

from pbkv_cluster.gateway.http.wire.endpoint import Dialect
from pbkv_cluster.gateway.http.wire.problems import Problem
from pbkv_cluster.gateway.http.wire.schemas import TEXT, one_of, or_null, record

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(problem: Problem, request_id: str) -> dict[str, Any]:
    """The body of an answer."""
    default = "invalid_request_error" if problem.status < 500 else "api_error"
    error = {"type": _TYPES.get(problem.status, default), "message": problem.message}
    return {"type": "error", "error": error, "request_id": request_id or None}


ANTHROPIC = Dialect(
    anthropic_error, record(type=one_of("error"), error=record(type=TEXT, message=TEXT), request_id=or_null(TEXT))
)
