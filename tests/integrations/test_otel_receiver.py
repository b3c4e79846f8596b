"""The receiver over real gRPC and HTTP, with the exporters of the OpenTelemetry SDK and a real predictor."""

import asyncio
import gzip
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import OtelConfig, PredictorConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.integrations.otel.otlp_http import OtlpHttpServer
from pbkv_cluster.integrations.otel.reasons import Reason
from pbkv_cluster.integrations.otel.receiver import OtelReceiver
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.predictor_service.state.encoding import from_bytes
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices
from tests.integrations.otel_spans import otlp, request
from tests.polling import eventually

HOST = "127.0.0.1"


@pytest.fixture
async def predictor() -> AsyncIterator[PredictorServer]:
    running = PredictorServer(PredictorConfig())
    await running.start(HOST, 0)
    yield running
    await running.stop()


@pytest.fixture
async def receiver(predictor: PredictorServer) -> AsyncIterator[OtelReceiver]:
    config = OtelConfig(port=0, http_port=0, reorder_s=0.2, parent_wait_s=2.0)
    running = OtelReceiver(config, FixedServices({PREDICTOR: predictor.address}), SystemClock())
    await running.start(HOST)
    yield running
    await running.stop()


def run_agents(exporter: SpanExporter, times: int) -> None:
    """Does what an instrumented framework does: runs a planner, then a writer."""
    provider = TracerProvider(resource=Resource.create({"service.name": "trips"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("framework")
    for _ in range(times):
        with tracer.start_as_current_span("invoke_workflow trip", attributes={"gen_ai.operation.name": "invoke_workflow"}):
            for agent in ("planner", "writer"):
                named = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
                with (
                    tracer.start_as_current_span(f"invoke_agent {agent}", attributes=named),
                    tracer.start_as_current_span("chat m", attributes={"gen_ai.operation.name": "chat"}) as chat,
                ):
                    chat.set_attribute("gen_ai.usage.input_tokens", 12)
    provider.shutdown()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_the_predictor_learns_from_an_instrumented_application(
    predictor: PredictorServer, receiver: OtelReceiver, protocol: str
) -> None:
    if protocol == "grpc":
        exporter: SpanExporter = GrpcExporter(endpoint=receiver.address, insecure=True)
    else:
        exporter = HttpExporter(endpoint=f"http://{receiver.http_address}/v1/traces")
    await asyncio.to_thread(run_agents, exporter, 5)

    async def learnt() -> bool:
        workloads = from_bytes(predictor.service.predictor.dump())["workloads"]
        return "trips" in workloads and seen(workloads["trips"]) == 10

    await eventually(learnt, 20)
    # Five transitions from planner to writer, and five from writer to the end. An agent gets a label in its second workflow.
    learnt_of = from_bytes(predictor.service.predictor.dump())["workloads"]["trips"]
    assert {"planner", "writer"} <= set(learnt_of["labels"]["names"])
    assert predictor.service.open_workflows == 0


def seen(workload: dict[str, Any]) -> float:
    """Number of transitions from an agent to another, or to the end."""
    return sum(sum(row.values()) for row in workload["predictability"]["counts"].values())


async def test_what_is_not_understood_is_counted_for_all_requests(receiver: OtelReceiver) -> None:
    unknown = otlp(1, 1, 2, "ponder")
    for _ in range(3):
        response = receiver.export(request([unknown, otlp(2, 1, 2, "execute_tool")]))
        assert response.partial_success.rejected_spans == 1
    assert receiver.collector.notices.counts[Reason.OPERATION_UNKNOWN] == 3
    assert receiver.collector.notices.counts[Reason.SPAN_MALFORMED] == 3
    assert "operation_unknown 3" in receiver.collector.notices.summary()


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Sends a POST; returns status and body. `content_type="x"` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, named), timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


PROTOBUF, JSON = "application/x-protobuf", "application/json"


async def test_http_takes_protobuf_and_gzip_and_reports_problems(receiver: OtelReceiver) -> None:
    url = f"http://{receiver.http_address}/v1/traces"
    body = request([otlp(1, 1, 2, "chat"), otlp(2, 1, 2, "execute_tool")]).SerializeToString()
    status, answer = await asyncio.to_thread(post, url, gzip.compress(body), content_type=PROTOBUF, content_encoding="gzip")
    assert status == 200
    partial = ExportTraceServiceResponse.FromString(answer).partial_success
    assert partial.rejected_spans == 1
    assert "gen_ai.tool.name" in partial.error_message


async def test_http_takes_json_with_ids_in_hex(receiver: OtelReceiver) -> None:
    url = f"http://{receiver.http_address}/v1/traces"
    times = {"startTimeUnixNano": "1000000000", "endTimeUnixNano": 2000000000}
    good = {"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174", "kind": 3, "new": 1, **times}
    message = {"resourceSpans": [{"scopeSpans": [{"spans": [good, good | {"spanId": "00"}]}]}]}
    status, answer = await asyncio.to_thread(post, url, json.dumps(message).encode(), content_type=JSON)
    assert status == 200, answer
    assert json.loads(answer)["partialSuccess"]["rejectedSpans"] == "1"
    assert "span_id" in json.loads(answer)["partialSuccess"]["errorMessage"]
    for field, name in (("traceId", "trace_id"), ("parentSpanId", "parent_span_id")):
        message["resourceSpans"][0]["scopeSpans"][0]["spans"] = [good | {field: "not+hex+"}]
        status, answer = await asyncio.to_thread(post, url, json.dumps(message).encode(), content_type=JSON)
        assert (status, f": {name}: " in answer.decode()) == (200, True)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/metrics", b"", {"content_type": PROTOBUF}, 404),
        ("/v1/traces", b"", {"content_type": "text/html"}, 415),
        ("/v1/traces", b"\xff\xff", {"content_type": PROTOBUF}, 400),
        ("/v1/traces", b"{", {"content_type": JSON}, 400),
        ("/v1/traces", b"[" * 100_000, {"content_type": JSON}, 400),
        ("/v1/traces", b'{"resourceSpans": [{"schemaUrl": "\\ud800"}]}', {"content_type": JSON}, 400),
        ("/v1/traces", b"x", {"content_type": PROTOBUF, "content_encoding": "gzip"}, 400),
        ("/v1/traces", b"x", {"content_type": PROTOBUF, "content_encoding": "br"}, 400),
        ("/v1/traces", b"", {"content_type": PROTOBUF}, 200),
    ],
)
async def test_http_refuses_bad_requests(
    receiver: OtelReceiver, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await asyncio.to_thread(post, f"http://{receiver.http_address}{path}", body, **headers)
    assert answer[0] == status, answer[1]


async def test_a_connection_that_is_not_http_gets_an_error_and_disturbs_no_other(receiver: OtelReceiver) -> None:
    host, port = receiver.http_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\x00\x01 what\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    url = f"http://{receiver.http_address}/v1/traces"
    assert (await asyncio.to_thread(post, url, b"", content_type=PROTOBUF))[0] == 200


async def test_one_connection_carries_several_requests(receiver: OtelReceiver) -> None:
    host, port = receiver.http_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(2):
        writer.write(head.encode() + b"0\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_port_in_use_is_a_clear_error(receiver: OtelReceiver) -> None:
    def refuse(_: Any) -> ExportTraceServiceResponse:
        raise AssertionError

    with pytest.raises(StartupError, match="cannot listen"):
        await OtlpHttpServer(refuse).start(HOST, int(receiver.http_address.split(":")[1]))
