"""The spans of a step on a worker, and what a scrape says of the worker that ran it."""

from pathlib import Path

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from pbkv_cluster.core.config import TelemetryConfig
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.rpc import tracing
from tests.gpu_worker.worker_rig import PATIENCE_S, config, serving, step

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)


async def test_a_step_has_a_span_whose_parts_are_its_usage_record(llama: Path) -> None:
    exporter = InMemorySpanExporter()
    tracing.set_up_tracing(TelemetryConfig(), "w", SimpleSpanProcessor(exporter))
    try:
        async with serving(config(llama)) as rig:
            usage = None
            async for event in rig.stub.RunStep(step(list(range(5, 45))), timeout=PATIENCE_S, metadata=PARENT):
                usage = event.finished.usage if event.HasField("finished") else usage
    finally:
        tracing.stop_tracing()
    assert usage is not None
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"worker", "queue", "load", "prefill", "decode"}
    worker = spans.pop("worker")
    assert f"{worker.context.trace_id:032x}" == TRACE
    assert dict(worker.attributes or {})["pbkv.computed_tokens"] == 40
    seconds = {"queue": usage.queue_s, "load": usage.load_s, "prefill": usage.prefill_s, "decode": usage.decode_s}
    for name, span in spans.items():
        assert span.parent is not None
        assert span.parent.span_id == worker.context.span_id
        assert abs((span.end_time or 0) - (span.start_time or 0) - seconds[name] * 1e9) < 1e3


async def test_a_worker_that_computes_a_prompt_says_so(llama: Path) -> None:
    async with serving(config(llama)) as rig:
        await rig.run(step(list(range(5, 45))))
        await rig.run(step(list(range(5, 45))))
        figures = Figures()
        await rig.worker.figures.put(figures)
    families = text_string_to_metric_families(figures.text().decode())
    found = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    assert found["pbkv_guard_prompt_tokens_total",] == 80
    assert found["pbkv_guard_hit_tokens_total", "cache"] == found["pbkv_guard_hit_tokens_total", "lru"] == 32
    assert found["pbkv_running_steps",] == found["pbkv_waiting_steps",] == found["pbkv_waiting_tokens",] == 0
    assert found["pbkv_tier_used_bytes", "gpu"] > 0
    assert found["pbkv_tier_locked_bytes", "gpu"] == 0
    assert found["pbkv_engine_batches_total",] > 2
