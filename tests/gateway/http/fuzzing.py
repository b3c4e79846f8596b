"""Requests that schemathesis makes from the OpenAPI document of an HTTP server, and what must be true of every answer."""

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Err
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from pbkv_cluster.gateway.http.sessions import hints

TIMEOUT_S = 120
MAX_TOKENS = 3  # of an answer
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# What JSON schemas cannot say of a request, its answer says with 400: so not all that the document allows is accepted.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
]

_Operation = schemathesis.APIOperation[Any, Any, Any, Any]


def fuzz(document: Mapping[str, Any], url: str, model: str, examples: int, number: int) -> Counter[tuple[str, int]]:
    """Sends requests that the document allows, and requests that it does not. Returns how often each path gave each status.

    Args:
        document: of OpenAPI.
        url: of the server.
        model: that is served.
        examples: of each kind for each path that takes something.
        number: of the round; each has requests of its own, and the same ones whenever it is run.
    """
    statuses: Counter[tuple[str, int]] = Counter()
    of_model = _narrowed(document, {"model": {"const": model}})
    with requests.Session() as session:
        for operation in _operations(_quick(of_model), url):
            _run(operation, GenerationMode.POSITIVE, session, examples, number, statuses)
        for operation in _operations(of_model, url):
            if operation.body or operation.headers or operation.path_parameters:
                _run(operation, GenerationMode.NEGATIVE, session, examples, number, statuses)
    return statuses


def _narrowed(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The document with other schemas for some fields of bodies."""
    narrowed = deepcopy(dict(document))
    for schema in narrowed["components"]["schemas"].values():
        properties = schema.get("properties", {})
        for name in properties.keys() & fields.keys():
            can_be_left_out = name not in schema.get("required", ())
            properties[name] = {"anyOf": [fields[name], {"type": "null"}]} if can_be_left_out else deepcopy(fields[name])
    return narrowed


def _quick(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document for clients that want a short answer and wait for it, since 504 is right for those that do not."""
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS}
    quick = deepcopy(dict(document))
    for schema in quick["components"]["schemas"].values():
        schema["required"] = [*schema.get("required", ()), *({*_LIMITS} & {*schema.get("properties", ())})]
    quick = _narrowed(quick, {"arguments": {"enum": ["", "{}", '{"a": [1]}']}, **dict.fromkeys(_LIMITS, limit)})
    for operations in quick["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == hints.TIMEOUT:
                    parameter["schema"] = {"type": "number", "minimum": TIMEOUT_S, "maximum": hints.MAX_TIMEOUT_S}
    return quick


def _operations(document: Mapping[str, Any], url: str) -> Iterator[_Operation]:
    schema = schemathesis.openapi.from_dict(dict(document))
    schema.config.update(base_url=url)
    for result in schema.get_all_operations():
        if isinstance(result, Err):
            raise result.err()
        yield result.ok()


def _run(
    operation: _Operation,
    mode: GenerationMode,
    session: requests.Session,
    examples: int,
    number: int,
    statuses: Counter[tuple[str, int]],
) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: schemathesis.Case[Any]) -> None:
        answer = case.call(session=session, timeout=TIMEOUT_S)
        statuses[operation.label, answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    answered()
