"""The metrics of the receiver of spans, read when they are asked for."""

from collections import Counter
from dataclasses import dataclass

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.decisions import Reason as FeedReason
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.integrations.otel.reasons import Reason


@dataclass(slots=True)
class OtelFigures:
    """Reads what the parts of a receiver count."""

    notices: Counter[Reason]
    decisions: Decisions
    feed: EventFeed

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        figures.put_each(names.OTEL_NOTICES, {reason.value: self.notices[reason] for reason in Reason})
        figures.put(names.PREDICTOR_REACHABLE, self.feed.reachable)
        figures.put(names.EVENTS_QUEUED, self.feed.queued)
        figures.put(names.EVENTS_DROPPED, self.decisions[FeedReason.EVENT_DROPPED])
