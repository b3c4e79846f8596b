"""The OpenAPI document of the HTTP API, from its endpoints and the models of their bodies."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from pbkv_cluster import __version__
from pbkv_cluster.gateway.http.sessions import hints
from pbkv_cluster.gateway.http.wire.endpoint import Endpoint

_HEADERS = {
    hints.WORKFLOW: "id of the workflow",
    hints.AGENT: "agent that calls",
    hints.CALL_SITE: "which of the agent's prompt templates",
    hints.WORKLOAD: "application whose workflows are learnt from together",
    hints.TENANT: "whose cached blocks these are",
    hints.SESSION: "session of Dynamo: one chain of steps",
    hints.PARENT_SESSION: "session that this one is a child of",
    hints.SESSION_FINAL: "true: the session's last step",
    hints.TRACE: "W3C trace context",
}
_ERRORS = {
    "400": "the request is wrong; the error names the field",
    "404": "there is no such model, workflow or path",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "too much is in flight: try again after Retry-After seconds",
    "500": "internal error",
    "503": "no worker is reachable: try again after Retry-After seconds",
}


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
        "components": {"schemas": schemas.get("$defs", {})},
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {}}
    if endpoint.streams:
        content["text/event-stream"] = {}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "served", "content": content},
            **{status: {"description": text, "content": {"application/json": {}}} for status, text in _ERRORS.items()},
        },
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in endpoint.parameters
        ],
    }
    if endpoint.body is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if endpoint.streams:
        operation["parameters"] += [
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
        ]
    return operation
