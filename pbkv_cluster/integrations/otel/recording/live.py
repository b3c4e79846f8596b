"""Records the spans that applications send to an OTLP port: a trace is written once it has been silent for a while."""

import asyncio
from collections import OrderedDict

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.integrations.otel.otlp_http import OtlpHttpServer
from pbkv_cluster.integrations.otel.reading.spans import Problems, Span, read_spans
from pbkv_cluster.integrations.otel.recording.assembly import calls_of
from pbkv_cluster.simulator.conversion.conversion import name_of
from pbkv_cluster.simulator.recording.calls import bytes_per_token
from pbkv_cluster.simulator.recording.conversation import TextSteps
from pbkv_cluster.simulator.recording.ids import Ids
from pbkv_cluster.simulator.recording.recorder import Recorder

OPEN_BYTES = 256 << 20  # of the requests that spans of open traces came in
_TICK_S = 0.2


class OtlpRecording:
    """Holds the spans of open traces, with their text, in memory only. Beyond a bound, requests are refused."""

    def __init__(self, recorder: Recorder, ids: Ids, clock: Clock, silence_s: float, open_bytes: int = OPEN_BYTES) -> None:
        """Args:
        recorder: to write with.
        ids: for texts.
        clock: measures silence.
        silence_s: after which a trace has ended.
        open_bytes: of requests, while any of their traces is open.
        """
        self._recorder = recorder
        self._ids = ids
        self._clock = clock
        self._silence_s = silence_s
        self._open_bytes = open_bytes
        self._size_bytes = 0
        self._sizes: dict[str, int] = {}
        self._traces: OrderedDict[str, list[Span]] = OrderedDict()  # silent for longest first
        self._heard_at: dict[str, float] = {}
        self._texts: TextSteps | None = None
        self._http = OtlpHttpServer(self.export)

    async def serve(self, host: str, port: int) -> str:
        """Serves OTLP over HTTP; port 0 takes a free one. Returns the address.

        Raises:
            StartupError: the port cannot be bound.
        """
        return await self._http.start(host, port)

    async def run(self) -> None:
        """Writes traces as they end, until it is cancelled."""
        while True:
            self.release()
            await asyncio.sleep(_TICK_S)

    async def stop(self) -> None:
        """Stops serving, and writes all that is there."""
        await self._http.stop()
        self.release(all_of_them=True)

    def export(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Takes the spans of a request; malformed ones are rejected, the others taken."""
        problems, size = Problems(), request.ByteSize()
        response = ExportTraceServiceResponse()
        if self._size_bytes + size > self._open_bytes:
            response.partial_success.rejected_spans = sum(
                len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
            )
            response.partial_success.error_message = f"open traces take more than {self._open_bytes} bytes"
            return response
        now = self._clock.now()
        spans = list(read_spans(request, problems, with_text=True))
        for span in spans:
            self._traces.setdefault(span.trace, []).append(span)
            self._traces.move_to_end(span.trace)
            self._heard_at[span.trace] = now
            share = size // len(spans) + 1
            self._sizes[span.trace] = self._sizes.get(span.trace, 0) + share
            self._size_bytes += share
        if problems.messages:
            response.partial_success.rejected_spans = problems.rejected
            response.partial_success.error_message = "; ".join(problems.messages)
        return response

    def release(self, all_of_them: bool = False) -> None:
        """Writes the traces that have been silent for long enough."""
        until = self._clock.now() - self._silence_s
        ended = [trace for trace in self._traces if all_of_them or self._heard_at[trace] <= until]
        spans = [span for trace in ended for span in self._traces.pop(trace)]
        for trace in ended:
            del self._heard_at[trace]
            self._size_bytes -= self._sizes.pop(trace)
        calls = list(calls_of(spans))
        if not calls:
            return
        texts = self._texts = self._texts or TextSteps(self._ids, bytes_per_token(calls))
        for call in calls:
            workflow = name_of(call.workflow, "workflow")
            self._recorder.step(workflow, name_of(call.workload, "unnamed"), texts.step(call))
            if call.tool:
                self._recorder.tool(workflow, call.tool)
        for workflow in dict.fromkeys(name_of(call.workflow, "workflow") for call in calls):
            self._recorder.end(workflow)
