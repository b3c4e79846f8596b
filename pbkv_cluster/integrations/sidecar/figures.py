"""The metrics of a sidecar, read when they are asked for."""

from dataclasses import dataclass

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.integrations.sidecar.engines.fleet import Fleet
from pbkv_cluster.integrations.sidecar.proxy import Proxy


@dataclass(slots=True)
class SidecarFigures:
    """Reads what the parts of a sidecar count."""

    proxy: Proxy
    fleet: Fleet
    feed: EventFeed

    def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        proxy = self.proxy
        meter, decisions = proxy.steps.meter, proxy.decisions
        totals = meter.totals
        outcomes = {
            "finished": totals.steps,
            "cancelled": decisions[Reason.STEP_CANCELLED],
            "failed": decisions[Reason.STEP_FAILED],
            "refused": decisions[Reason.STEP_REFUSED],
        }
        figures.put_each(names.STEPS, outcomes)
        figures.put(names.PROMPT_TOKENS, totals.prompt_tokens)
        figures.put(names.AVAILABLE_TOKENS, totals.available_tokens)
        figures.put_each(names.DELIVERED_TOKENS, {Tier.GPU.value: totals.delivered.get(Tier.GPU, 0)})
        figures.put(names.GENERATED_TOKENS, totals.generated_tokens)
        figures.put_histogram(names.TTFT_SECONDS, meter.ttft)
        figures.put_histogram(names.STEP_SECONDS, meter.steps)
        figures.put_histogram(names.WORKFLOW_SECONDS, meter.workflows)
        figures.put_each(names.GATEWAY_DECISIONS, {reason.value: decisions[reason] for reason in Reason})
        figures.put(names.OPEN_WORKFLOWS, len(proxy.workflows))
        figures.put(names.STEPS_IN_FLIGHT, proxy.steps.in_flight)
        figures.put(names.PREDICTOR_REACHABLE, self.feed.reachable)
        figures.put(names.EVENTS_QUEUED, self.feed.queued)
        figures.put(names.EVENTS_DROPPED, decisions[Reason.EVENT_DROPPED])
        figures.put(names.SIDECAR_PASSED, proxy.passed)
        figures.put(names.SIDECAR_FORECASTS, proxy.forecasts.received)
        figures.put_each(names.SIDECAR_HINTS, dict(proxy.hints.sent))
        figures.put(names.SIDECAR_MISMATCHES, proxy.prompts.mismatches)
        for engine in self.fleet.engines:
            figures.put(names.WORKER_STEPS, len(engine.steps), engine.name)
            figures.put(names.WORKER_TOKENS, engine.steps.tokens, engine.name)
            figures.put(names.WORKER_REACHABLE, engine.is_live, engine.name)
            figures.put(names.ENGINE_BLOCKS, len(engine.blocks), engine.name)
            figures.put(names.ENGINE_EXACT, engine.is_exact, engine.name)
            if engine.events is not None:
                figures.put(names.KV_EVENT_GAPS, engine.events.gaps, engine.name)
                figures.put(names.KV_EVENT_RESTARTS, engine.events.restarts, engine.name)
                figures.put(names.KV_EVENT_MALFORMED, engine.events.malformed, engine.name)
