"""What is expected of one active workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pbkv_cluster.reuse.model.features import Likeliest
from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank.forecast_blend import Agents, of_forecast
from pbkv_cluster.reuse.rank.next_use import NextUse
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

if TYPE_CHECKING:
    from pbkv_cluster.cache.tree.node import Owner
    from pbkv_cluster.core.forecasts.forecast import Forecast
    from pbkv_cluster.reuse.model.access_model import AccessModel


class WorkflowOutlook:
    """One workflow."""

    __slots__ = (
        "agent",
        "agents",
        "arrival",
        "chances",
        "expected",
        "forecast",
        "foretold",
        "known",
        "owners",
        "places",
        "queued",
        "record",
        "running",
        "seen",
        "seen_at",
        "since",
        "standing",
        "unused",
    )

    def __init__(self, owner: Owner) -> None:
        self.owners = [owner]  # the workflow in the cache, and in shadows of it
        self.record: WorkflowRecord = owner.record
        self.running = 0  # steps
        self.since = 0.0  # when the step that began last began, or, if none runs, when the last ended
        self.agent = ""
        self.known = False  # `chances` are those of the present state
        self.forecast: Forecast | None = None  # that they rest on
        self.agents: Agents = {}  # next agent by the model
        self.foretold: Agents = {}  # by the forecast
        self.queued: frozenset[Segment] = frozenset()  # that a step uses as soon as it is admitted
        self.standing: NextUse | None = None  # of the present state, or of an older one that no longer holds
        self.places: dict[Segment, int] = {}  # rows of `chances` and `unused`
        self.expected: Likeliest | None = None  # that `chances` rest on
        self.chances: Floats | None = None  # of the next use in each bin
        self.arrival: Floats | None = None  # see `Timing.arrival`
        self.unused: Floats | None = None  # probability that each segment is not used again within each horizon
        self.seen_at = -1.0  # time that `arrival` is of
        self.seen = 0  # number of that look

    @property
    def step(self) -> int:
        """Position of the latest step."""
        return len(self.record.steps) - 1

    def look(self, model: AccessModel, share: float) -> bool:
        """Finds the chances of the present state under the latest forecast. Returns whether they may be others than before.

        Args:
            model: what has been learnt.
            share: of the forecast in what is expected next.
        """
        standing, self.forecast = self.standing, self.owners[0].forecast
        stays = self.known and standing is not None and standing.holds()
        if standing is None or not stays:
            self.places = self._segments()
            standing = self.standing = NextUse(model, self.record, list(self.places))
        self.agents, self.foretold = standing.agents, {}
        if self.forecast is not None and self.forecast.step == self.record.steps[-1].number:  # else it is of another step
            self.foretold = of_forecast(self.forecast)
        self.known = True
        expected = standing.likeliest(self.foretold, share)
        if stays and expected == self.expected:
            return False
        self.expected, self.chances, self.unused = expected, standing.chances(expected), None
        return True

    def _segments(self) -> dict[Segment, int]:
        """All that a cache may ask for, numbered."""
        found: dict[Segment, int] = {}
        for owner in self.owners:
            for node in owner.nodes:
                found.setdefault(node.owners[owner], len(found))
        return found
