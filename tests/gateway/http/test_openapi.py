"""The OpenAPI document is true: what it allows, and what it nearly allows, is answered without a defect and in one shape."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and OpenAPI document of a server in a thread of its own."""
    ready, done = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with http_running(ScriptedWorker("w0", say=lambda prompt: "yes")) as rig:
            found.extend([asyncio.get_running_loop(), rig.server.address, rig.server.openapi])
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=[serve()], daemon=True)
    thread.start()
    assert ready.wait(60)
    loop, address, document = found
    yield address, document
    loop.call_soon_threadsafe(done.set)
    thread.join(60)


def values(schema: Any, schemas: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows, as far as its types say."""
    if schema.get("description", "").startswith("not implemented"):
        return st.none()
    if "$ref" in schema:
        return st.deferred(lambda: values(schemas[schema["$ref"].rpartition("/")[2]], schemas))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if variants := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([values(variant, schemas) for variant in variants])
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            required = set(schema.get("required", ()))
            return st.fixed_dictionaries(
                {name: values(properties[name], schemas) for name in properties if name in required},
                optional={name: values(each, schemas) for name, each in properties.items() if name not in required},
            )
        case "array":
            least = schema.get("minItems", 0)
            return st.lists(values(schema.get("items", {}), schemas), min_size=least, max_size=max(2, least))
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=8)
        case "integer":
            return st.integers(schema.get("minimum", -9), min(schema.get("maximum", 99), 99))
        case "number":
            return st.floats(schema.get("minimum", 0), schema.get("maximum", 2), allow_nan=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return ANY


def bodies(schema: Any, schemas: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What is allowed, most often with a model that is served, and sometimes with one field that is not as it should be."""

    def spoiled(parts: tuple[dict[str, Any], int, str, Any, int]) -> Any:
        body, named, field, value, spoil = parts
        body = {**body, "model": MODEL} if named else body
        if "tool_choice" in body and not named % 3:
            body["tool_choice"] = "auto"
        return {**body, field: value} if spoil == 9 else body

    names = sorted(schemas[schema["$ref"].rpartition("/")[2]]["properties"])
    return st.tuples(
        values(schema, schemas), st.integers(0, 9), st.sampled_from(names) | st.text(max_size=4), ANY, st.integers(0, 9)
    ).map(spoiled)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_no_request_is_a_defect(served: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    address, document = served
    schemas = document["components"]["schemas"]
    path = data.draw(st.sampled_from([path for path, operations in document["paths"].items() if "post" in operations]))
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body = data.draw(bodies(schema, schemas))
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        # As many clients write it: characters beyond ASCII as they are, and lone halves of pairs as escapes.
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    event(f"{path} {answer.status}")
    assert answer.status < 500, text
    assert str(answer.status) in document["paths"][path]["post"]["responses"]
    if answer.headers["content-type"].startswith("application/json"):
        assert answer.status == 200 or json.loads(text)["error"]["message"]
    else:
        assert text.startswith((b"data: ", b"event: ")), text


def test_the_document_names_every_path(served: tuple[str, dict[str, Any]]) -> None:
    _, document = served
    assert set(document["paths"]) == {
        "/health",
        "/tokenize",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/workflows/{workflow}",
    }
