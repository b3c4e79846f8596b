"""OTLP over HTTP: POST /v1/traces with protobuf or JSON, plain or gzip; nothing else."""

import base64
import binascii
import zlib
from collections.abc import Callable, Mapping

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.rpc.http_server import Audience, HttpAnswer, HttpServer, Route, plain

Export = Callable[[ExportTraceServiceRequest], ExportTraceServiceResponse]

PATH = "/v1/traces"
_PROTOBUF, JSON = "application/x-protobuf", "application/json"
_MAX_BODY_BYTES = 64 << 20  # as over gRPC, before and after decompression
_NO_ID = bytes(1)
_GZIP = 16 + zlib.MAX_WBITS


class OtlpHttpServer:
    """Serves one port until it is stopped."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._server = HttpServer({PATH: Route("POST", self._answer, _MAX_BODY_BYTES, Audience.OPERATORS)})

    @property
    def address(self) -> str:
        """Where it serves, host:port; empty before the start."""
        return self._server.address

    async def start(self, host: str, port: int) -> str:
        """Binds and serves. Port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Ends the connections and stops serving."""
        await self._server.stop()

    async def _answer(self, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (_PROTOBUF, JSON):
            return plain(415, f"content-type must be {_PROTOBUF} or {JSON}, got {kind or 'none'}")
        try:
            request = decode(kind, _decompress(headers.get("content-encoding", ""), body))
        except InvalidArgument as error:
            return plain(400, str(error))
        response = self._export(request)
        if kind == JSON:
            return HttpAnswer(200, kind, json_format.MessageToJson(response, indent=None).encode())
        return HttpAnswer(200, kind, response.SerializeToString())


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


def decode(kind: str, body: bytes) -> ExportTraceServiceRequest:
    """A request of OTLP over HTTP.

    Raises:
        InvalidArgument: the body is none.
    """
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
