"""Spans: nothing while tracing is off; a trace that goes on across calls while it is on; and a collector that gets it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from pbkv_cluster.core.config import TelemetryConfig
from pbkv_cluster.rpc import tracing
from tests.polling import eventually

PARENT = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("other-bin", b"\0"))


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.set_up_tracing(TelemetryConfig(), "gateway", SimpleSpanProcessor(exporter))
    yield exporter
    tracing.stop_tracing()


def test_off_nothing_is_imported_and_nothing_sent() -> None:
    code = (
        "import sys; from pbkv_cluster.rpc import tracing; span = tracing.start('x'); span.set(a=1); span.part('y', 0, 1); "
        "span.end(); assert span.metadata() == (); assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_span_goes_on_in_the_trace_of_its_call(spans: InMemorySpanExporter) -> None:
    outer = tracing.start("step", PARENT)
    inner = tracing.start("worker", outer.metadata())
    inner.part("prefill", 100.0, 1.5)
    inner.end("cancelled")
    inner.end()
    outer.set(workflow="w", step=2)
    outer.end()
    prefill, worker, step = spans.get_finished_spans()
    assert (prefill.name, worker.name, step.name) == ("prefill", "worker", "step")
    assert {span.context.trace_id for span in (prefill, worker, step)} == {0x0AF7651916CD43DD8448EB211C80319C}
    assert step.parent is not None
    assert step.parent.span_id == 0xB7AD6B7169203331
    assert worker.parent is not None
    assert worker.parent.span_id == step.context.span_id
    assert prefill.parent is not None
    assert prefill.parent.span_id == worker.context.span_id
    assert (prefill.start_time, prefill.end_time) == (100 * 10**9, 101_500_000_000)
    assert (worker.status.status_code, step.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert dict(step.attributes or {}) == {"pbkv.workflow": "w", "pbkv.step": 2}
    assert step.resource.attributes["service.instance.id"] == "gateway"


@pytest.mark.parametrize("metadata", [(), None, (("traceparent", "rubbish"),), (("traceparent", "00-00-00-00"),)])
def test_without_a_context_that_can_be_read_a_trace_begins(
    spans: InMemorySpanExporter, metadata: tuple[tuple[str, str], ...] | None
) -> None:
    tracing.start("step", metadata).end()
    (span,) = spans.get_finished_spans()
    assert span.parent is None


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def Export(  # noqa: N802
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: aio.ServicerContext,  # type: ignore[type-arg]
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_collector_gets_the_spans() -> None:
    collector, server = _Collector(), aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tracing.set_up_tracing(TelemetryConfig(otlp_endpoint=f"127.0.0.1:{port}"), "gateway")
    try:
        tracing.start("step").end()
        await eventually(lambda: collector.names == ["step"])  # sent in the background
    finally:
        tracing.stop_tracing()
        await server.stop(None)
