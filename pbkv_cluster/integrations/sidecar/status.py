"""What operators are told of a sidecar that runs."""

from dataclasses import dataclass
from typing import Any

from pbkv_cluster import __version__
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.integrations.sidecar.engines.engine import Engine
from pbkv_cluster.integrations.sidecar.engines.fleet import Fleet
from pbkv_cluster.integrations.sidecar.proxy import Proxy


@dataclass(slots=True)
class SidecarStatus:
    """Reads the parts of a sidecar."""

    proxy: Proxy
    fleet: Fleet
    feed: EventFeed

    def to_json(self) -> dict[str, Any]:
        """The status as a value for JSON."""
        totals = self.proxy.steps.meter.totals
        return {
            "version": __version__,
            "engines": [_engine(engine) for engine in self.fleet.engines],
            "predictor": self.feed.address,
            "open_workflows": len(self.proxy.workflows),
            "steps": totals.steps,
            "steps_in_flight": self.proxy.steps.in_flight,
            "prompt_tokens": totals.prompt_tokens,
            "available_tokens": totals.available_tokens,
            "cached_tokens": sum(totals.delivered.values()),
            "forecasts": self.proxy.forecasts.received,
            "compares": "tokens" if self.proxy.prompts.compares_tokens else "text",
            "decisions": {str(reason): count for reason, count in sorted(self.proxy.decisions.items())},
        }


def _engine(engine: Engine) -> dict[str, Any]:
    events = engine.events
    return {
        "url": engine.config.url,
        "kind": engine.config.kind,
        "answers": engine.is_live,
        "steps": engine.served,
        "steps_in_flight": len(engine.steps),
        "blocks": len(engine.blocks),
        "exact": engine.is_exact,
        "kv_events": None
        if events is None
        else {"batches": events.batches, "gaps": events.gaps, "restarts": events.restarts, "malformed": events.malformed},
        "hints": list(engine.config.hints),
    }
