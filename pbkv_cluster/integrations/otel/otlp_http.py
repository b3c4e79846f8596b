"""OTLP over HTTP: POST /v1/traces with protobuf or JSON, plain or gzip; nothing else."""

import asyncio
import base64
import binascii
import logging
import zlib
from collections.abc import Callable
from typing import NamedTuple

import h11
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from pbkv_cluster import __version__
from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.locations.addresses import join_address

log = logging.getLogger(__name__)

Export = Callable[[ExportTraceServiceRequest], ExportTraceServiceResponse]

PATH = "/v1/traces"
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_MAX_BODY_BYTES = 64 << 20  # as over gRPC, before and after decompression
_READ_BYTES = 1 << 16
_IDLE_S = 120.0  # a connection that is silent for longer is closed
_NO_ID = bytes(1)
_GZIP = 16 + zlib.MAX_WBITS


class _Answer(NamedTuple):
    status: int
    kind: str
    body: bytes


class OtlpHttpServer:
    """Serves one port until it is stopped."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.address = ""

    async def start(self, host: str, port: int) -> str:
        """Binds and serves. Port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError as error:
            raise StartupError(f"cannot listen on {join_address(host, port)}: {error.strerror}") from error
        self.address = join_address(host, self._server.sockets[0].getsockname()[1])
        return self.address

    async def stop(self) -> None:
        """Ends the connections and stops serving."""
        if self._server is not None:
            self._server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve_requests(reader, writer)
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            log.info("a sender's connection is closed: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            log.debug("a connection ends with its server")
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            try:
                answer = await self._next_answer(connection, reader, writer)
            except h11.RemoteProtocolError as error:
                answer = _plain(error.error_status_hint, f"not HTTP/1.1: {error}")
            if answer is None:
                return
            headers = [
                ("Content-Type", answer.kind),
                ("Content-Length", str(len(answer.body))),
                ("Server", f"pbkv/{__version__}"),
            ]
            if connection.their_state is not h11.DONE:
                headers.append(("Connection", "close"))
            response = h11.Response(status_code=answer.status, headers=headers)
            for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
                writer.write(connection.send(event) or b"")
            await writer.drain()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _next_answer(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> _Answer | None:
        """Reads the next request and returns its answer; None if the connection has ended."""
        request: h11.Request | None = None
        body = bytearray()
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    if connection.they_are_waiting_for_100_continue:
                        proceed = h11.InformationalResponse(status_code=100, headers=[])
                        writer.write(connection.send(proceed) or b"")
                    async with asyncio.timeout(_IDLE_S):
                        connection.receive_data(await reader.read(_READ_BYTES))
                case h11.Request() as request:
                    if request.target.decode("ascii", "replace").partition("?")[0] != PATH:
                        return _plain(404, f"there is only {PATH}")
                    if request.method != b"POST":
                        return _plain(405, "there is only POST")
                case h11.Data() as data:
                    body += data.data
                    if len(body) > _MAX_BODY_BYTES:
                        return _plain(413, f"more than {_MAX_BODY_BYTES} bytes")
                case h11.EndOfMessage():
                    assert request is not None
                    return self._answer(
                        {name.decode(): value.decode("latin-1") for name, value in request.headers}, bytes(body)
                    )
                case _:
                    return None

    def _answer(self, headers: dict[str, str], body: bytes) -> _Answer:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (_PROTOBUF, _JSON):
            return _plain(415, f"content-type must be {_PROTOBUF} or {_JSON}, got {kind or 'none'}")
        try:
            request = _decode(kind, _decompress(headers.get("content-encoding", ""), body))
        except InvalidArgument as error:
            return _plain(400, str(error))
        response = self._export(request)
        if kind == _JSON:
            return _Answer(200, kind, json_format.MessageToJson(response, indent=None).encode())
        return _Answer(200, kind, response.SerializeToString())


def _plain(status: int, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", text.encode())


def _decompress(encoding: str, body: bytes) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise InvalidArgument("content-encoding", f"must be gzip or identity, got {encoding!r}")
    unzip = zlib.decompressobj(_GZIP)
    try:
        data = unzip.decompress(body, _MAX_BODY_BYTES)
    except zlib.error as error:
        raise InvalidArgument("body", f"is not gzip: {error}") from error
    if not unzip.eof:
        raise InvalidArgument("body", f"is cut short, or holds more than {_MAX_BODY_BYTES} bytes")
    return data


def _decode(kind: str, body: bytes) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    try:
        if kind == _PROTOBUF:
            request.ParseFromString(body)
        else:
            json_format.Parse(body, request, ignore_unknown_fields=True)
            _restore_ids(request)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArgument("body", f"is no ExportTraceServiceRequest: {error}") from error
    return request


def _restore_ids(request: ExportTraceServiceRequest) -> None:
    """Decodes ids again: OTLP writes them in hex, but the JSON of protobuf has base64, and so they were read as base64."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                for name in ("trace_id", "span_id", "parent_span_id"):
                    setattr(span, name, _from_hex(getattr(span, name)))
                for link in span.links:
                    link.ClearField("trace_id")  # not used
                    link.ClearField("span_id")


def _from_hex(value: bytes) -> bytes:
    try:
        return binascii.unhexlify(base64.b64encode(value).rstrip(b"="))
    except binascii.Error:
        return _NO_ID  # so that only this span is rejected
