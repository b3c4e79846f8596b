"""An engine as vLLM shows itself: OpenAI's API, and KV events over real sockets under hashes of its own."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.tokens import unpack
from pbkv_cluster.gateway.http.wire.port import HttpPort
from pbkv_cluster.store.kv_events.messages import BlockRemoved, BlockStored, Event, encode, frame_of

BLOCK = 32  # tokens
TOPIC = b"kv-events"


@dataclass(eq=False)
class ScriptedEngine:
    """Answers each prompt with `say`, and holds the blocks of all of them until it is told to `evict`."""

    codec: TextCodec | None = None  # None: it publishes nothing, and counts no tokens
    say: str = "Whales sing."
    status: int = 200  # of answers
    break_after: int = -1  # events of a stream, after which it breaks the connection; -1: never
    stop_after: int = -1  # events of a stream, after which it waits for `go`
    headers: dict[str, str] = field(default_factory=lambda: {"x-own": "1"})  # of answers on paths that are no steps
    calls: list[dict[str, Any]] = field(default_factory=list)  # of tools, in whole answers
    bodies: list[dict[str, Any]] = field(default_factory=list)
    raw: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)  # method, target, headers, body
    go: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    left: int = 0  # clients that have gone before the end of their answer
    held: dict[bytes, None] = field(default_factory=dict)  # hashes of blocks
    url: str = ""
    kv_events: str = ""

    async def start(self, port: int = 0) -> None:
        routes = [
            Route("/health", self._health),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/completions", self._answer, methods=["POST"]),
            Route("/v1/responses", self._respond, methods=["POST"]),
            Route("/{rest:path}", self._other, methods=["GET", "POST", "DELETE"]),
        ]
        self._port = HttpPort(Starlette(routes=routes), GatewayConfig())
        address = await self._port.start("127.0.0.1", port)
        self.url = f"http://{address}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.kv_events = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._number = -1

    async def stop(self) -> None:
        await self._port.stop()
        self._socket.close()
        self._context.term()

    async def go_away(self) -> None:
        """Closes its HTTP port."""
        await self._port.stop()

    async def come_back(self) -> None:
        """Opens the same port again."""
        await self._port.start("127.0.0.1", int(self.url.rpartition(":")[2]))

    @property
    def prompts(self) -> int:
        """Answers that it was asked for."""
        return len(self.bodies)

    def publish(self, *events: Event) -> None:
        self._number += 1
        self._socket.send_multipart([TOPIC, frame_of(self._number), encode(events, float(self._number), 0)])

    def evict(self) -> None:
        """Loses all its blocks, the last of each prompt first."""
        self.publish(BlockRemoved(list(reversed(self.held)), "GPU"))
        self.held.clear()

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.status == 200 else self.status)

    async def _note(self, request: Request) -> bytes:
        body = await request.body()
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.raw.append((request.method, target, dict(request.headers), body))
        return body

    async def _other(self, request: Request) -> Response:
        await self._note(request)
        return Response(b'{"object": "list",\n "data": [{"id": "m"}]}', media_type="application/json", headers=self.headers)

    async def _respond(self, request: Request) -> Response:
        self.bodies.append(json.loads(await self._note(request)))
        output = [{"type": "message", "content": [{"type": "output_text", "text": self.say}]}]
        answer = {"id": f"resp_{self.url[-4:]}_{self.prompts}", "object": "response", "output": output}
        return Response(json.dumps(answer), media_type="application/json")

    async def _answer(self, request: Request) -> Response:
        body = json.loads(await self._note(request))
        self.bodies.append(body)
        if self.status != 200:
            return Response(b'{"error": {"message": "scripted"}}', self.status, media_type="application/json")
        prompt, cached = self._compute(body)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3}
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
        if not body.get("stream"):
            return Response(json.dumps(self._whole(body, usage), indent=1), media_type="application/json")
        return StreamingResponse(self._stream(body, usage), media_type="text/event-stream")

    def _whole(self, body: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": self.say, "tool_calls": self.calls}
        choice |= {"message": message} if "messages" in body else {"text": self.say}
        return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}

    async def _stream(self, body: dict[str, Any], usage: dict[str, Any]) -> AsyncIterator[bytes]:
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        try:
            for number, word in enumerate(self.say.split(" ")):
                if number == self.break_after:
                    raise ConnectionResetError
                if number == self.stop_after:
                    self.stopped.set()
                    await self.go.wait()
                delta = {"delta": {"content": word + " "}} if "messages" in body else {"text": word + " "}
                yield _event({**head, "choices": [{"index": 0, **delta, "finish_reason": None}]})
        except asyncio.CancelledError:
            self.left += 1
            raise
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def _compute(self, body: dict[str, Any]) -> tuple[int, int]:
        """Tokens of the prompt, and those that were cached. Publishes the blocks that were not."""
        if self.codec is None:
            return 100, 0
        packed = _packed(self.codec, body)
        ids = unpack(packed)
        parent: bytes | None = None
        cached, new = 0, list[tuple[bytes, list[int]]]()
        first_parent = parent
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            tokens = ids[start : start + BLOCK]
            key = hashlib.sha256((parent or b"own") + repr(tokens).encode()).digest()
            if key in self.held and not new:
                cached += BLOCK
                first_parent = key
            else:
                new.append((key, tokens))
            parent = key
        if new:
            self.held |= dict.fromkeys(key for key, _ in new)
            self.publish(BlockStored([key for key, _ in new], first_parent, _flat(tokens for _, tokens in new), BLOCK, "GPU"))
        return len(ids), cached


def _packed(codec: TextCodec, body: dict[str, Any]) -> bytes:
    if "messages" not in body:
        return codec.encode(body["prompt"])
    return codec.encode_chat([ChatMessage(each["role"], each["content"]) for each in body["messages"]], body.get("tools") or ())


def _flat(blocks: Any) -> Sequence[int]:
    return [token for block in blocks for token in block]


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
