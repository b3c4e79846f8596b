"""An OTLP receiver: takes spans over gRPC and HTTP and sends workflow events to the predictor."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.integrations.otel.collector import SpanCollector
from pbkv_cluster.integrations.otel.figures import OtelFigures
from pbkv_cluster.integrations.otel.otlp_http import OtlpHttpServer
from pbkv_cluster.integrations.otel.reading.spans import Problems, read_spans
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.services import Services

log = logging.getLogger(__name__)

_TICK_S = 0.1
_REPORT_S = 60.0


class _TraceServicer(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP's `TraceService`."""

    def __init__(self, receiver: "OtelReceiver") -> None:
        self._receiver = receiver

    async def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, context: aio.ServicerContext[Any, Any]
    ) -> ExportTraceServiceResponse:
        return self._receiver.export(request)


class OtelReceiver:
    """Serves OTLP until it is stopped. Spans that still wait for others of their workflow are lost then."""

    def __init__(self, config: OtelConfig, services: Services, clock: Clock) -> None:
        """Args:
        config: ports, waits and limits.
        services: finds the predictor.
        clock: measures the waits.
        """
        self._config = config
        self._clock = clock
        self.collector = SpanCollector(config, clock)
        self.decisions: Decisions = Counter()  # of the feed: dropped events
        self._feed = EventFeed(services, self.decisions)
        self.figures = OtelFigures(self.collector.notices.counts, self.decisions, self._feed)
        self._rpc = RpcServer(is_public=True)
        self._http = OtlpHttpServer(self.export)
        self._background = Background()

    @property
    def address(self) -> str:
        """host:port of OTLP over gRPC; empty before the start."""
        return self._rpc.address

    @property
    def http_address(self) -> str:
        """host:port of OTLP over HTTP; empty if it is not served."""
        return self._http.address

    async def start(self, host: str) -> str:
        """Serves. Returns the address of OTLP over gRPC.

        Raises:
            StartupError: a port cannot be bound.
        """
        descriptor = trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"]
        self._rpc.add(descriptor, trace_service_pb2_grpc.add_TraceServiceServicer_to_server, _TraceServicer(self))
        address = await self._rpc.start(host, self._config.port)
        if self._config.http_port >= 0:
            await self._http.start(host, self._config.http_port)
        self._background.start(self._release(), "release of events")
        self._background.start(self._feed.run(), "events to the predictor")
        log.info("OTLP is served on %s (gRPC) and %s (HTTP)", address, self.http_address or "no port")
        return address

    def export(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Takes the spans of a request; malformed ones are rejected, the others taken."""
        problems = Problems(self.collector.notices)
        for span in read_spans(request, problems):
            if why := self.collector.add(span):
                problems.refuse(why)
        response = ExportTraceServiceResponse()
        if problems.messages:
            response.partial_success.rejected_spans = problems.rejected
            response.partial_success.error_message = "; ".join(problems.messages)
        return response

    def reasons(self) -> dict[str, int]:
        """How many spans, steps, workflows and events were dropped or not understood, or otherwise noticed, by reason."""
        noticed = {str(reason): count for reason, count in self.collector.notices.counts.items()}
        return noticed | {str(name): count for name, count in self.decisions.items()}

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        parts: tuple[Awaitable[None], ...] = (
            self._http.stop(),
            self._rpc.stop(),
            self._feed.finish(),
            self._background.stop(),
        )
        for part in parts:
            await part

    async def _release(self) -> None:
        reported, report_at = self._losses(), self._clock.now() + _REPORT_S
        while True:
            for event in self.collector.release():
                self._feed.put(event)
            if self._clock.now() >= report_at:
                if (lost := self._losses()) != reported:
                    log.warning("spans and events lost or not understood so far: %s", lost)
                reported, report_at = lost, self._clock.now() + _REPORT_S
            await asyncio.sleep(_TICK_S)

    def _losses(self) -> str:
        unsent = (f"{name} {count}" for name, count in self.decisions.items())
        return ", ".join(filter(None, [self.collector.notices.summary(), *unsent]))
