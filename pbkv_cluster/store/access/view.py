"""What is expected of one active workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pbkv_cluster.store.access.expectation import Agents, of_forecast
from pbkv_cluster.store.access.features import Likeliest
from pbkv_cluster.store.access.hazard import Floats
from pbkv_cluster.store.access.history import History, Segment
from pbkv_cluster.store.access.standing import Standing

if TYPE_CHECKING:
    from pbkv_cluster.core.forecast import Forecast
    from pbkv_cluster.store.access.model import AccessModel
    from pbkv_cluster.store.node import Owner


class View:
    """One workflow."""

    __slots__ = (
        "agent",
        "agents",
        "arrival",
        "chances",
        "expected",
        "forecast",
        "foretold",
        "history",
        "known",
        "owners",
        "places",
        "queued",
        "running",
        "seen",
        "seen_at",
        "since",
        "standing",
        "unused",
    )

    def __init__(self, owner: Owner) -> None:
        self.owners = [owner]  # the workflow in the cache, and in shadows of it
        self.history: History = owner.history
        self.running = 0  # steps
        self.since = 0.0  # when the step that began last began, or, if none runs, when the last ended
        self.agent = ""
        self.known = False  # `chances` are those of the present state
        self.forecast: Forecast | None = None  # that they rest on
        self.agents: Agents = {}  # next agent by the model
        self.foretold: Agents = {}  # by the forecast
        self.queued: frozenset[Segment] = frozenset()  # that a step uses as soon as it is admitted
        self.standing: Standing | None = None  # of the present state, or of an older one that no longer holds
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
        return len(self.history.steps) - 1

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
            standing = self.standing = Standing(model, self.history, list(self.places))
        self.agents, self.foretold = standing.agents, {}
        if self.forecast is not None and self.forecast.step == self.history.steps[-1].number:  # else it is of another step
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
