"""Spans of a step through gateway, worker and its caches, sent to an OpenTelemetry collector (OTLP over gRPC).

Off, as by default, nothing of OpenTelemetry is imported and a span is an object that does nothing. On, each process has one
tracer. The context travels in gRPC metadata as W3C Trace Context (`traceparent`): a client that sends one finds the step in its
own trace.

    span = tracing.start("step", context.invocation_metadata())
    span.set(worker="worker-0")
    stub.RunStep(request, metadata=span.metadata())
    span.end()

Spans carry ids of workflows, names of agents, and numbers; nothing that a prompt or an output says.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from pbkv_cluster.core.config import TelemetryConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.installation import install_command

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

Metadata = tuple[tuple[str, str], ...]
CallMetadata = Iterable[tuple[str, str | bytes]] | None
"""What came with a call; None: nothing."""

_SERVICE = "pbkv"
_PREFIX = "pbkv."  # of attributes


class Span(Protocol):
    """A part of a step's time."""

    def set(self, **attributes: str | int | float) -> None:
        """Adds attributes; their names get the prefix `pbkv.`."""

    def part(self, name: str, start_s: float, duration_s: float) -> None:
        """Adds a span that is over, as a part of this one: seconds since the epoch, and seconds."""

    def end(self, failure: str = "") -> None:
        """Ends the span, with an error if there was one. Harmless when repeated."""

    def metadata(self) -> Metadata:
        """What to send with a call that is a part of this span."""


class _NoSpan:
    """What there is while tracing is off."""

    def set(self, **attributes: str | int | float) -> None:
        pass

    def part(self, name: str, start_s: float, duration_s: float) -> None:
        pass

    def end(self, failure: str = "") -> None:
        pass

    def metadata(self) -> Metadata:
        return ()


NO_SPAN: Span = _NoSpan()


class _OtelSpan:
    def __init__(self, tracer: Any, name: str, parent: "Context | None") -> None:
        self._tracer = tracer
        self._span = tracer.start_span(name, context=parent)

    def set(self, **attributes: str | int | float) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(_PREFIX + name, value)

    def part(self, name: str, start_s: float, duration_s: float) -> None:
        start = int(start_s * 1e9)
        self._tracer.start_span(name, context=self._context(), start_time=start).end(start + int(duration_s * 1e9))

    def end(self, failure: str = "") -> None:
        from opentelemetry.trace import Status, StatusCode

        if failure and self._span.is_recording():
            self._span.set_status(Status(StatusCode.ERROR, failure))
        if self._span.is_recording():
            self._span.end()

    def metadata(self) -> Metadata:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context=self._context())
        return tuple(carrier.items())

    def _context(self) -> "Context":
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self._span)


class _Tracing:
    """The tracer of this process."""

    provider: "TracerProvider | None" = None


_this_process = _Tracing()


def set_up_tracing(config: TelemetryConfig, member: str = "", processor: "SpanProcessor | None" = None) -> None:
    """Has this process send its spans as configured.

    Args:
        config: names the collector; an empty name switches tracing off.
        member: name of the process in its cluster.
        processor: takes the spans instead of the collector.

    Raises:
        StartupError: the packages of the extra `telemetry` are not installed.
    """
    stop_tracing()
    if not config.otlp_endpoint and processor is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError(f"telemetry.otlp_endpoint needs more packages: {install_command('telemetry')} ({error})") from error
    resource = Resource.create({"service.name": _SERVICE, "service.instance.id": member})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint, insecure=True)))
    _this_process.provider = provider


def stop_tracing() -> None:
    """Sends what waits, and switches tracing off in this process."""
    provider, _this_process.provider = _this_process.provider, None
    if provider is not None:
        provider.shutdown()


def start(name: str, metadata: CallMetadata = None) -> Span:
    """Begins a span.

    Args:
        name: what takes the time.
        metadata: of the call that it is a part of; without a context in it, a new trace begins.
    """
    if _this_process.provider is None:
        return NO_SPAN
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    parent = TraceContextTextMapPropagator().extract(carrier)
    return _OtelSpan(_this_process.provider.get_tracer("pbkv_cluster"), name, parent)
