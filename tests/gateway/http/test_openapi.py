"""The OpenAPI document is true: what it allows, and what it does not, is answered without a defect and as it says."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator

from tests.gateway.http.fuzzing import fuzz
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker

EXAMPLES = 12  # of each kind for each path


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, dict[str, Any]]]:
    """URL and OpenAPI document of a server in a thread of its own."""
    ready, done = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with http_running(ScriptedWorker("w0", say=lambda prompt: "yes")) as rig:
            found.extend([asyncio.get_running_loop(), rig.url, rig.server.openapi])
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=[serve()], daemon=True)
    thread.start()
    assert ready.wait(60)
    loop, url, document = found
    yield url, document
    loop.call_soon_threadsafe(done.set)
    thread.join(60)


def test_no_request_is_a_defect(served: tuple[str, dict[str, Any]]) -> None:
    url, document = served
    statuses = fuzz(document, url, MODEL, EXAMPLES, 2)
    paths = [path for path, operations in document["paths"].items() if "post" in operations]
    for path in paths:
        assert statuses[f"POST {path}", 200], (path, statuses)
        assert statuses[f"POST {path}", 400], (path, statuses)


def test_the_document_names_every_path(served: tuple[str, dict[str, Any]]) -> None:
    _, document = served
    assert set(document["paths"]) == {
        "/health",
        "/openapi.json",
        "/tokenize",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/prefetch",
        "/v1/workflows/{workflow}",
    }


def test_the_document_says_that_ending_a_workflow_reads_its_tenant(served: tuple[str, dict[str, Any]]) -> None:
    _, document = served
    parameters = document["paths"]["/v1/workflows/{workflow}"]["delete"]["parameters"]
    assert [(each["name"], each["in"]) for each in parameters] == [("workflow", "path"), ("x-pbkv-tenant", "header")]


def test_null_is_as_good_as_nothing(served: tuple[str, dict[str, Any]]) -> None:
    url, document = served
    messages = [{"role": "user", "content": "hello"}]
    for path in ("/tokenize", "/v1/prefetch"):
        bodies: list[tuple[dict[str, Any], int]] = [
            ({"messages": messages, "prompt": None}, 200),
            ({"messages": None, "prompt": "hello"}, 200),
            ({"messages": messages, "prompt": "hello"}, 400),
        ]
        for body, status in bodies:
            answer = requests.post(url + path, json=body, timeout=60)
            assert answer.status_code == status, (path, body, answer.text)
            schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            allowed = Draft202012Validator({**schema, "components": document["components"]}).is_valid(body)
            assert allowed is (status == 200), (path, body)
