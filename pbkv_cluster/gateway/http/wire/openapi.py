"""The OpenAPI document of the HTTP API, from its endpoints and the models of their bodies."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from pbkv_cluster import __version__
from pbkv_cluster.core.checks import MAX_NAME_BYTES
from pbkv_cluster.gateway.http.sessions import hints
from pbkv_cluster.gateway.http.wire.endpoint import Endpoint
from pbkv_cluster.gateway.http.wire.schemas import COUNT, TEXT, one_of

_FLAG = "^([tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|1|0|)$"
_NAME = {"type": "string", "maxLength": MAX_NAME_BYTES}
_HEADERS = {
    hints.WORKFLOW: ("id of the workflow", _NAME),
    hints.AGENT: ("agent that calls", _NAME),
    hints.CALL_SITE: ("which of the agent's prompt templates", _NAME),
    hints.WORKLOAD: ("application whose workflows are learnt from together", _NAME),
    hints.TENANT: ("whose cached blocks these are", _NAME),
    hints.TIMEOUT: (
        "seconds after which the client no longer waits",
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": hints.MAX_TIMEOUT_S}, one_of("")]},
    ),
    hints.SESSION: ("session of Dynamo: one chain of steps", _NAME),
    hints.PARENT_SESSION: ("session that this one is a child of", _NAME),
    hints.SESSION_FINAL: ("whether this is the session's last step", {"type": "string", "pattern": _FLAG}),
    hints.TRACE: ("W3C trace context", TEXT),
}
_ANSWER_HEADERS = {
    hints.WORKFLOW: "id of the workflow, percent-encoded",
    hints.AGENT: "agent, percent-encoded",
    hints.STEP: "number of the step in its workflow",
}
_ERRORS = {
    400: "the request is wrong; the error names the field",
    401: "there is no API key, or it is not known",
    403: "the API key is that of another tenant",
    404: "there is no such model or workflow",
    413: "the body is too large",
    415: "the body is not said to be JSON",
    422: "the model has not written the tool call that is demanded",
    429: "too much is in flight: try again after Retry-After seconds",
    500: "internal error",
    503: "no worker is reachable: try again after Retry-After seconds",
    504: "the answer was not complete in the time that the client waits",
}
_RETRY_AFTER = {"retry-after": {"description": "seconds", "required": True, "schema": COUNT}}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document, for OpenAPI 3.1."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pbkv_cluster", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {str(status): response for status, response in sorted(_responses(endpoint).items())},
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {**_NAME, "minLength": 1}} for name in endpoint.parameters
        ],
    }
    if endpoint.needs_key:  # or none, where `security.credentials` are not set
        operation["security"] = [{"bearer": []}, {"x-api-key": []}, {}]
    if endpoint.body is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    for name in _HEADERS if endpoint.streams else endpoint.headers:
        text, kind = _HEADERS[name]
        operation["parameters"].append({"name": name, "in": "header", "description": text, "schema": kind})
    return operation


def _responses(endpoint: Endpoint) -> dict[int, Any]:
    content: dict[str, Any] = {"application/json": {"schema": endpoint.answer}}
    answer: dict[str, Any] = {"description": "the answer", "content": content}
    if endpoint.streams:
        content["text/event-stream"] = {}
        answer["headers"] = {name: {"description": text, "schema": TEXT} for name, text in _ANSWER_HEADERS.items()}
    problems = {500, *endpoint.problems}
    if endpoint.needs_key:
        problems |= {401, 403}
    if endpoint.body is not None:
        problems |= {400, 413, 415, 429}
    error = {"application/json": {"schema": endpoint.dialect.error_schema}}
    return {status: _problem(status, error) for status in problems} | dict.fromkeys(endpoint.answer_statuses, answer)


def _problem(status: int, content: dict[str, Any]) -> dict[str, Any]:
    problem = {"description": _ERRORS[status], "content": content}
    return {**problem, "headers": _RETRY_AFTER} if status in (429, 503) else problem
