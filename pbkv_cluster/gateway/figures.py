"""The gateway's metrics, read when they are asked for."""

from dataclasses import dataclass

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.admission.limits import Limit
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.store.cluster_index import Directory, IndexMirror


@dataclass(slots=True)
class GatewayFigures:
    """Reads what the parts of a gateway count."""

    pool: WorkerPool
    workflows: OpenWorkflows
    admission: Admission
    feed: EventFeed
    meter: GatewayMeter
    decisions: Decisions
    directory: Directory
    mirror: IndexMirror

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        self._put_hits(figures)
        self._put_latencies(figures)
        self._put_workers(figures)
        figures.put_each(names.GATEWAY_DECISIONS, {reason.value: self.decisions[reason] for reason in Reason})
        figures.put(names.OPEN_WORKFLOWS, len(self.workflows))
        figures.put(names.STEPS_IN_FLIGHT, len(self.admission))
        figures.put_each(names.STEPS_REFUSED, {limit.value: self.admission.refused[limit] for limit in Limit})
        figures.put(names.REDIS_REACHABLE, self.pool.index_reachable)
        figures.put(names.PREDICTOR_REACHABLE, self.feed.reachable)
        figures.put(names.INDEX_BLOCKS, len(self.mirror.blocks))
        figures.put(names.INDEX_CURRENT, self.mirror.is_current)
        figures.put(names.INDEX_REPAIRS, self.mirror.repairs)
        figures.put(names.EVENTS_QUEUED, self.feed.queued)
        figures.put(names.EVENTS_DROPPED, self.decisions[Reason.EVENT_DROPPED])
        figures.put(names.DIRECTORY_MALFORMED, self.directory.malformed)

    def _put_hits(self, figures: Figures) -> None:
        totals = self.meter.totals
        outcomes = {
            "finished": totals.steps,
            "cancelled": self.decisions[Reason.STEP_CANCELLED],
            "failed": self.decisions[Reason.STEP_FAILED],
            "refused": self.decisions[Reason.STEP_REFUSED],
        }
        figures.put_each(names.STEPS, outcomes)
        figures.put(names.PROMPT_TOKENS, totals.prompt_tokens)
        figures.put(names.AVAILABLE_TOKENS, totals.available_tokens)
        figures.put_each(names.CAPTURED_TOKENS, {tier.value: totals.captured.get(tier, 0) for tier in Tier})
        figures.put_each(names.DELIVERED_TOKENS, {tier.value: totals.delivered.get(tier, 0) for tier in Tier})
        figures.put(names.COMPUTED_TOKENS, totals.computed_tokens)
        figures.put(names.GENERATED_TOKENS, totals.generated_tokens)
        for workload, meter in self.meter.workloads.items():
            put_workload(figures, workload, meter)

    def _put_latencies(self, figures: Figures) -> None:
        meter = self.meter
        figures.put_histogram(names.TTFT_SECONDS, meter.ttft)
        figures.put_histogram(names.STEP_SECONDS, meter.steps)
        figures.put_histogram(names.WORKFLOW_SECONDS, meter.workflows)
        for tenant, waits in meter.queue_waits.items():
            figures.put_histogram(names.QUEUE_SECONDS, waits, tenant)
        phases = {"queue": meter.queue_s, "load": meter.load_s, "prefill": meter.prefill_s, "decode": meter.decode_s}
        figures.put_each(names.PHASE_SECONDS, phases)

    def _put_workers(self, figures: Figures) -> None:
        # A worker that has started again is known twice for a moment; the later one is the one that serves.
        for worker in {worker.id: worker for worker in self.pool.known()}.values():
            figures.put(names.WORKER_STEPS, len(worker.steps), worker.id)
            figures.put(names.WORKER_TOKENS, worker.steps.tokens, worker.id)
            figures.put(names.WORKER_REACHABLE, not worker.suspect, worker.id)


def put_workload(figures: Figures, workload: str, meter: HitMeter) -> None:
    """Adds what the steps of one workload add up to."""
    figures.put(names.WORKLOAD_STEPS, meter.steps, workload)
    figures.put(names.WORKLOAD_PROMPT_TOKENS, meter.prompt_tokens, workload)
    figures.put(names.WORKLOAD_AVAILABLE_TOKENS, meter.available_tokens, workload)
    figures.put(names.WORKLOAD_DELIVERED_TOKENS, sum(meter.delivered.values()), workload)
