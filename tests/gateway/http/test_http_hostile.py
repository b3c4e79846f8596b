"""Floods and odd requests cost the gateway no memory, and a cancelled request holds nothing in a real engine."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.model.random_model import build
from tests.gateway.http.http_rig import MODEL, HttpRig, http_running
from tests.gateway.http.test_http_limits import BODY, PATIENCE_S, answered, connected, request
from tests.gateway.peers import ScriptedWorker
from tests.gateway.real_workers import SIZES, real_workers
from tests.polling import eventually

FLAT_BYTES = 24 << 20  # that a process may grow while it refuses a flood: buffers, and what its allocator keeps
CLIENTS = 8


async def flooded(http: HttpRig, head: bytes, piece: bytes, pieces: int) -> bytes:
    """What the server answers to a head and as much of a flood as it takes before it closes the connection."""
    async with connected(http) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        try:
            writer.write(head)
            for _ in range(pieces):
                writer.write(piece)
                await asyncio.wait_for(writer.drain(), PATIENCE_S)
            writer.write_eof()
            return await asyncio.wait_for(answer, PATIENCE_S)
        except OSError:  # closed, or reset because it had not read all
            return b""
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (request(b"", content_length=str(50 << 20)), b"x" * (1 << 16)),
        (request(b"", content_length="", transfer_encoding="chunked"), b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n", b"x-header: " + b"v" * (1 << 16) + b"\r\n"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n", b"a: b\r\n" * 10_000),
        (b"POST /v1/chat/completions?", b"q" * (1 << 16)),
    ],
    ids=["told length", "chunks", "long headers", "many headers", "long path"],
)
async def test_a_flood_of_50_megabytes_costs_no_memory(head: bytes, piece: bytes) -> None:
    process = psutil.Process()
    pieces = (50 << 20) // len(piece)
    async with http_running(ScriptedWorker("w0"), http_max_body_bytes=1 << 16) as http:
        await flooded(http, head, piece, pieces)  # takes what is taken once
        before = process.memory_info().rss
        answers = await asyncio.gather(*(flooded(http, head, piece, pieces) for _ in range(CLIENTS)))
        assert all(not answer or answer.startswith(b"HTTP/1.1 4") for answer in answers)
        assert process.memory_info().rss - before < FLAT_BYTES
        assert (await answered(http, request(BODY)))[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (BODY.replace(b'"hi"', b'"\xff\xfe"'), 400),
        (BODY.replace(b'"hi"', b'"\xed\xa0\x80"'), 400),
        (BODY.replace(b'"hi"', b'"\\ud800"'), 400),
        (BODY.replace(b'"hi"', b'"\\u0000"'), 200),
        (b"\xef\xbb\xbf" + BODY, 400),
        (BODY.replace(b'"hi"', b'"a", "content": "b"'), 200),  # the last one counts, as with all JSON parsers of the field
        (BODY[:-1] + b', "metadata": ' + b'{"a":' * 190 + b"1" + b"}" * 191, 200),
        (BODY[:-1] + b', "metadata": ' + b'{"a":' * 250 + b"1" + b"}" * 251, 400),
        (BODY[:-1] + b', "seed": 1' + b"0" * 5000 + b"}", 400),
        (BODY[:-1] + b', "metadata": {"a": 1' + b"0" * 4000 + b"}}", 200),
        (BODY + b"{}", 400),
    ],
    ids=["no UTF-8", "surrogate", "escaped half", "zero", "mark", "twice", "deep", "too deep", "huge", "large", "more"],
)
async def test_odd_json_is_answered_or_refused(body: bytes, status: int) -> None:
    async with http_running(ScriptedWorker("w0")) as http:
        got, answer = await answered(http, request(body))
    assert got == status, answer
    assert status == 200 or answer["error"]["type"] == "invalid_request_error"


def held(engine: Engine) -> tuple[int, int, int]:
    """Steps that run and wait, and the blocks of the GPU that they hold."""
    return len(engine.scheduler.running), engine.scheduler.waiting, engine.cache.locked_blocks(Tier.GPU)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_cancelled_request_frees_its_blocks(tmp_path: Path, stream: bool, n: int) -> None:
    build(tmp_path, "llama", **SIZES)
    async with http_running() as http, real_workers(http.rig, tmp_path, "a") as (worker,), http.openai() as client:

        async def ask() -> None:
            asked: dict[str, Any] = {"stream": stream, "n": n, "extra_body": {"ignore_eos": True}}
            answer: Any = await client.completions.create(model=MODEL, prompt="x" * 40, max_tokens=900, **asked)
            async for _ in answer:
                pass

        async def runs() -> bool:
            running, _, blocks = await worker.server.thread.call(held)
            return running == n and blocks > n

        async def is_free() -> bool:
            return await worker.server.thread.call(held) == (0, 0, 0)

        asking = asyncio.create_task(ask())
        await eventually(runs)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(is_free)
        assert (await http.rig.status()).running_steps == 0
        assert len(http.rig.gateway.submission.admission) == 0
        await worker.server.thread.call(lambda engine: engine.cache.check_integrity())
