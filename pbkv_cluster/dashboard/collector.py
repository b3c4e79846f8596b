"""Asks the cluster, once for all who look: about every second while somebody does, else every five, for the history."""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import PbkvError, Unavailable
from pbkv_cluster.core.metrics.metric import Source
from pbkv_cluster.dashboard import summary
from pbkv_cluster.dashboard.columns import RowMaker
from pbkv_cluster.dashboard.history import History
from pbkv_cluster.dashboard.history_file import HistoryFile
from pbkv_cluster.dashboard.notices import Notices
from pbkv_cluster.dashboard.scraping.metrics_text import Scrape, Scrapes
from pbkv_cluster.dashboard.scraping.scraper import Scraper
from pbkv_cluster.dashboard.viewers import Viewers
from pbkv_cluster.dashboard.workflows import WorkflowReader
from pbkv_cluster.rpc.services import PREDICTOR
from pbkv_cluster.store.cluster_index import Directory, EndpointEntry, GatewayEntry, MemberEntry, ProblemsEntry, WorkerEntry

log = logging.getLogger(__name__)

Json = dict[str, Any]

_WATCHED_S = 0.8  # so that with the round's own time, what happens is seen within a second
_UNWATCHED_S = 5.0
_ROUNDS_PER_LISTING = 6  # listing agents and the cache takes longer than the rest
_SELDOM_ASKED = (Source.HEAD, Source.HOST_STORE)  # as often as that: whether they serve, the directory tells


@dataclass(slots=True)
class _Cluster:
    """What the directory tells."""

    endpoints: list[EndpointEntry]
    members: list[MemberEntry]
    problems: list[ProblemsEntry]
    workers: list[WorkerEntry]
    gateway: str  # address of one of them; empty: there is none
    predictor: str


class Collector:
    """Runs until it is stopped; what it has found goes to the viewers and the history."""

    def __init__(self, name: str, directory: Directory, clock: Clock, viewers: Viewers, history: History) -> None:
        """Args:
        name: of the cluster.
        directory: of the cluster.
        clock: for the times of rows and notices.
        viewers: get a snapshot of each round.
        history: gets a row of each round.
        """
        self._name, self._directory, self._clock = name, directory, clock
        self._viewers, self._history = viewers, history
        self._file: HistoryFile | None = None
        self._reader = WorkflowReader()
        self._scraper = Scraper()
        self._seldom: dict[str, Scrape] = {}  # by member
        self._notices = Notices()
        self._rows = RowMaker()
        self._round = 0
        self._known: _Cluster | None = None
        self._agents: list[Json] = []
        self._workflows: Json = {"open": 0, "shown": []}
        self._cached: dict[str, dict[str, int]] = {}
        self._uses: dict[str, summary.WorkerUse] = {}

    def continue_from(self, file: HistoryFile) -> None:
        """Takes the history of earlier clusters from a file, and writes rows to it from now on.

        Raises:
            StartupError: the file cannot be read.
        """
        self._file = file
        for row in file.rows():
            self._history.add(row)
        self._rows = RowMaker(self._history.last)

    async def block(self, key: str) -> Json:
        """One block; see `WorkflowReader.block`."""
        return await self._reader.block(key)

    async def detail(self, workflow: str) -> Json:
        """One open workflow; see `WorkflowReader.detail`."""
        return await self._reader.detail(workflow)

    async def run(self) -> None:
        """Collects until it is cancelled."""
        self._keep(self._rows.start(self._clock.wall()))
        try:
            while True:
                before = self._clock.now()
                watched = self._viewers.count > 0
                await self._collect(watched)
                spent = self._clock.now() - before
                await wait_for(self._viewers.came, max(0.0, (_WATCHED_S if watched else _UNWATCHED_S) - spent))
                self._viewers.came.clear()
        finally:
            self._scraper.close()
            await self._reader.close()

    async def _collect(self, watched: bool) -> None:
        now = self._clock.wall()
        trouble = []
        try:
            self._known = await self._look_up()
        except Unavailable as error:
            trouble.append(f"Redis does not answer, so members may have moved: {error}")
        known = self._known
        if known is None:
            self._viewers.show(json.dumps({"time": now, "cluster": self._name, "trouble": trouble}))
            return
        scrapes = await self._scrape(known.endpoints)
        self._notices.look(now, known.members, known.problems, scrapes)
        self._keep(self._rows.make(now, scrapes))
        if watched:
            trouble += await self._look_closer(known)
            self._viewers.show(json.dumps(self._snapshot(now, known, scrapes, trouble)))
            self._round += 1
        else:
            self._round = 0

    async def _scrape(self, endpoints: list[EndpointEntry]) -> dict[str, Scrape]:
        """The metrics of all members; of those that only tell how much there is, the latest."""
        seldom = [each for each in endpoints if each.kind in _SELDOM_ASKED]
        if self._round % _ROUNDS_PER_LISTING == 0:
            self._seldom = await self._scraper.scrape_all(seldom)
        often = [each for each in endpoints if each.kind not in _SELDOM_ASKED]
        self._scraper.keep({each.address for each in endpoints})
        known = {each.member for each in seldom}
        return {name: each for name, each in self._seldom.items() if name in known} | await self._scraper.scrape_all(often)

    async def _look_up(self) -> _Cluster:
        directory = self._directory
        endpoints, members, problems, workers, gateways, predictor = await asyncio.gather(
            directory.endpoints(),
            directory.members(),
            directory.problems(),
            directory.workers(),
            directory.gateways(),
            directory.service_address(PREDICTOR),
        )
        return _Cluster(endpoints, members, problems, workers, _one_that_is_up(gateways, members), predictor or "")

    async def _look_closer(self, known: _Cluster) -> list[str]:
        """Workflows now, and from time to time agents and the cache. Returns what is not known, and why."""
        try:
            await self._reader.find(known.gateway, known.predictor)
            if self._round % _ROUNDS_PER_LISTING == 0:
                self._cached, self._uses = await self._reader.cached_by_workflow(known.workers)
                self._agents = await self._reader.agents()
            self._workflows = await self._reader.workflows()
        except PbkvError as error:
            return [f"The gateway does not answer: {error}"]
        return []

    def _snapshot(self, now: float, known: _Cluster, scrapes: Scrapes, trouble: list[str]) -> Json:
        gateway = summary.all_of(Source.GATEWAY, known.endpoints, scrapes)
        predictor = summary.all_of(Source.PREDICTOR, known.endpoints, scrapes)
        stores = [each.member for each in known.endpoints if each.kind == Source.HOST_STORE]
        shown = [{**each, "cached": self._cached.get(each["id"], {})} for each in self._workflows["shown"]]
        return {
            "time": now,
            "cluster": self._name,
            "model": known.workers[0].namespace.model if known.workers else "",
            "trouble": trouble,
            "totals": summary.totals(gateway) if gateway.series else None,
            "workers": [
                summary.worker(entry, scrapes.get(entry.worker_id), self._uses.get(entry.worker_id)) for entry in known.workers
            ],
            "arenas": {name: summary.arena(scrapes[name]) for name in stores if name in scrapes},
            "prediction": summary.prediction(predictor, gateway) if predictor.series else None,
            "members": summary.members(known.members, known.endpoints, known.problems, scrapes),
            "workflows": {"open": self._workflows["open"], "shown": shown},
            "agents": self._agents,
            "notices": self._notices.latest(),
        }

    def _keep(self, row: Any) -> None:
        if self._history.add(row) and self._file is not None:
            try:
                self._file.add(row)
            except OSError as error:
                log.warning("history is not written any more: %s", error)
                self._notices.note(self._clock.wall(), "bad", f"History is not written any more: {error}")
                self._file = None


def _one_that_is_up(gateways: list[GatewayEntry], members: list[MemberEntry]) -> str:
    """The address of the first gateway that serves, as far as is known; empty if there is no gateway."""
    down = {member.name for member in members if not member.up}
    found = sorted(gateways, key=lambda gateway: gateway.name in down)
    return found[0].address if found else ""
