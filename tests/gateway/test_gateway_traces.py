"""A step's spans in gateway and worker are one trace: the client's."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from pbkv_cluster.core.config import TelemetryConfig
from pbkv_cluster.rpc import tracing
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import refused, running

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.set_up_tracing(TelemetryConfig(), "gateway", SimpleSpanProcessor(exporter))
    yield exporter
    tracing.stop_tracing()


class Listening(ScriptedWorker):
    """Keeps what comes with each call."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.heard: list[dict[str, str]] = []

    async def RunStep(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.heard.append(dict(context.invocation_metadata()))
        async for event in super().RunStep(request, context):
            yield event


async def test_the_trace_of_the_client_goes_on_to_the_worker(spans: InMemorySpanExporter) -> None:
    worker = Listening("w0")
    async with running(worker) as rig:
        workflow = await rig.start_workflow(workload="trips")
        await rig.run(workflow, metadata=PARENT)
    (span,) = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert worker.heard[0]["traceparent"].split("-")[1:3] == [TRACE, f"{span.context.span_id:016x}"]
    attributes = dict(span.attributes or {})
    assert attributes["pbkv.prompt_tokens"] == 16
    assert {name: attributes[f"pbkv.{name}"] for name in ("workflow", "step", "agent", "workload", "worker")} == {
        "workflow": workflow,
        "step": 0,
        "agent": "agent",
        "workload": "trips",
        "worker": "w0",
    }


async def test_a_failed_step_is_an_error_in_its_trace(spans: InMemorySpanExporter) -> None:
    async with running(ScriptedWorker("w0", fail_with=grpc.StatusCode.INTERNAL)) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.INTERNAL):
            await rig.run(workflow)
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "failed")


async def test_without_tracing_a_worker_is_sent_no_context() -> None:
    worker = Listening("w0")
    async with running(worker) as rig:
        await rig.run(await rig.start_workflow())
    assert "traceparent" not in worker.heard[0]
