"""Clients that are slow, too many, too large or malformed get a clear answer or a closed connection."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.gateway.http.http_rig import MODEL, HttpRig, http_running
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import until

PATIENCE_S = 20.0
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()


@asynccontextmanager
async def connected(http: HttpRig) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = http.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def request(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """A whole request; underscores in the names of headers stand for hyphens."""
    named = {"host": "x", "content_type": "application/json", "content_length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answered(http: HttpRig, data: bytes) -> tuple[int, Any]:
    """Status and JSON of the answer to what is sent, after which the client sends no more."""
    async with connected(http) as (reader, writer):
        writer.write(data)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        status = int(head.split()[1])
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        body = await asyncio.wait_for(reader.readexactly(length), PATIENCE_S)
    return status, json.loads(body) if b"json" in head else body.decode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"[" * 100_000, 400),
        (b'{"model": "\\ud800"}', 400),
        (b'{"model": NaN}', 400),
        (b'{"messages": ' + b'{"a":' * 5000, 400),
    ],
)
async def test_what_is_no_request_is_refused(path: str, body: bytes, status: int) -> None:
    async with http_running(ScriptedWorker("w0")) as http:
        got, answer = await answered(http, request(body, path))
    assert got == status, answer
    assert answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
@pytest.mark.parametrize(
    ("path", "fields", "wrong"),
    [
        ("/v1/responses", b'"input": "x", "metadata": {"a": [%s]}', "metadata"),
        (
            "/v1/responses",
            b'"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"a": %s}}]',
            "tools[0].param",
        ),
        ("/v1/chat/completions", b'"messages": [{"role": "user", "content": "x"}], "user": %s', "user"),
        ("/v1/messages", b'"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "metadata": {"a": %s}', "metadata"),
    ],
)
async def test_what_is_no_number_of_json_is_refused_wherever_it_stands(
    path: str, fields: bytes, wrong: str, number: bytes
) -> None:
    async with http_running(ScriptedWorker("w0")) as http:
        status, answer = await answered(http, request(b'{"model": "%s", %s}' % (MODEL.encode(), fields % number), path))
    assert status == 400, answer
    assert answer["error"]["message"].startswith(wrong), answer
    assert "NaN or beyond a float" in answer["error"]["message"]


async def test_a_large_body_is_refused_whether_its_length_is_told_or_not() -> None:
    async with http_running(ScriptedWorker("w0"), http_max_body_bytes=4096) as http:
        told = await answered(http, request(b"x", content_length=str(50 << 20)))
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        untold = await answered(http, request(b"", content_length="", transfer_encoding="chunked") + 3 * chunk)
        for status, answer in (told, untold):
            assert status == 413
            assert answer["error"]["code"] == "request_too_large"
        assert (await http.rig.status()).running_steps == 0


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_a_body_that_is_not_said_to_be_json_is_refused(kind: str) -> None:
    """So that a page in a browser cannot send requests without being allowed to."""
    async with http_running(ScriptedWorker("w0")) as http:
        status, answer = await answered(http, request(BODY, content_type=kind))
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


async def test_unknown_paths_and_methods_are_told_as_errors() -> None:
    async with http_running(ScriptedWorker("w0")) as http:
        status, answer = await answered(http, request(BODY, "/v1/embeddings"))
        assert (status, answer["error"]["message"]) == (404, "POST /v1/embeddings: Not Found")
        status, answer = await answered(http, request(BODY, "/v1/models"))
        assert (status, answer["error"]["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000])
async def test_what_is_not_http_is_refused(data: bytes) -> None:
    async with http_running(ScriptedWorker("w0")) as http, connected(http) as (reader, writer):
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "data", [b"", b"POST /v1/chat", request(BODY)[:-5], request(BODY, content_length=str(len(BODY) + 100))]
)
async def test_a_request_that_does_not_arrive_is_given_up(data: bytes) -> None:
    """However slowly it drips: the deadline is that of the whole request."""
    async with http_running(ScriptedWorker("w0"), http_read_timeout_s=0.2) as http, connected(http) as (reader, writer):
        writer.write(data)

        async def drip() -> None:
            while not reader.at_eof():
                writer.write(b"x")
                await asyncio.sleep(0)

        dripping = asyncio.create_task(drip()) if data else None
        try:
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        except ConnectionResetError:
            pass
        finally:
            if dripping is not None:
                dripping.cancel()


async def test_a_slow_answer_is_not_given_up() -> None:
    """The deadline is for the request alone."""
    worker = ScriptedWorker("w0", stop_at=1)
    async with http_running(worker, http_read_timeout_s=0.05) as http:
        answer = asyncio.create_task(answered(http, request(BODY)))
        await worker.stopped.wait()
        first = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - first > 0.2, "more than the deadline passes")
        worker.go.set()
        assert (await answer)[0] == 200


async def test_connections_beyond_the_bound_are_refused() -> None:
    async with http_running(ScriptedWorker("w0"), http_max_connections=2) as http:
        async with connected(http), connected(http), connected(http) as (reader, _):
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer

        async def served() -> bool:
            async with connected(http) as (reader, writer):
                writer.write(request(BODY))
                return (await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"HTTP/1.1 200")

        assert await served() or await served()


async def test_a_client_that_closes_its_half_frees_its_step() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with http_running(worker) as http, connected(http) as (_, writer):
        writer.write(request(BODY))
        await worker.stopped.wait()
        writer.write_eof()
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        assert (await http.rig.status()).running_steps == 0


async def test_many_requests_on_one_connection_are_answered_in_order() -> None:
    async with http_running(ScriptedWorker("w0", say=lambda prompt: "Paris.")) as http, connected(http) as (reader, writer):
        writer.write(request(BODY) * 3)
        for _ in range(3):
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).startswith(b"HTTP/1.1 200")
            await asyncio.wait_for(reader.readuntil(b"}}}"), PATIENCE_S)
