"""OTLP spans for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from pbkv_cluster.integrations.otel.reading.spans import Problems, Span, read_spans

TRACE = 0xABC
SECOND = 1_000_000_000


def value(plain: Any) -> AnyValue:
    match plain:
        case bool():
            return AnyValue(bool_value=plain)
        case int():
            return AnyValue(int_value=plain)
        case float():
            return AnyValue(double_value=plain)
        case str():
            return AnyValue(string_value=plain)
        case list():
            return AnyValue(array_value=ArrayValue(values=[value(each) for each in plain]))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=pairs(plain)))
    raise TypeError(type(plain))


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value(each)) for key, each in attributes.items()]


def otlp(
    number: int,
    start_s: float,
    end_s: float,
    operation: str = "",
    *,
    parent: int = 0,
    trace: int = TRACE,
    events: Mapping[str, Mapping[str, Any]] | None = None,
    other: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> OtlpSpan:
    """A span. Its attributes are those of the conventions, with _ for dots: `agent_name="a"`; `other` ones have full names."""
    named = dict(other or {}) | {f"gen_ai.{name.replace('_', '.', 1)}": each for name, each in attributes.items()}
    if operation:
        named["gen_ai.operation.name"] = operation
    return OtlpSpan(
        trace_id=trace.to_bytes(16),
        span_id=number.to_bytes(8),
        parent_span_id=parent.to_bytes(8) if parent else b"",
        name=f"{operation or 'other'} {number}",
        start_time_unix_nano=int(start_s * SECOND),
        end_time_unix_nano=int(end_s * SECOND),
        attributes=pairs(named),
        events=[OtlpSpan.Event(name=name, attributes=pairs(each)) for name, each in (events or {}).items()],
    )


def request(spans: Sequence[OtlpSpan], service: Any = "shop") -> ExportTraceServiceRequest:
    resource = Resource(attributes=pairs({"service.name": service}))
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)])])


async def export(address: str, *spans: OtlpSpan) -> ExportTraceServiceResponse:
    """Sends spans to a receiver over gRPC."""
    make_stub: Any = trace_service_pb2_grpc.TraceServiceStub  # the generated code has no types
    async with aio.insecure_channel(address) as channel:
        response: ExportTraceServiceResponse = await make_stub(channel).Export(request(spans), timeout=20)
        return response


def read(*spans: OtlpSpan, service: Any = "shop") -> tuple[list[Span], Problems]:
    problems = Problems()
    return list(read_spans(request(spans, service), problems)), problems


def span(*args: Any, **kwargs: Any) -> Span:
    (one,), problems = read(otlp(*args, **kwargs))
    assert not problems.messages
    return one
