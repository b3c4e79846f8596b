"""The status of the cluster: what runs where, asked of every worker at once."""

import asyncio
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import HitMeter
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.peers.everywhere import Everywhere
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.worker import Worker, WorkerReport
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.rpc.services import DASHBOARD, DISCOVERY_PATH, HEAD
from pbkv_cluster.store.cluster_index import Directory, MemberEntry, NodeStateEntry, ProblemsEntry


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker."""

    worker_id: str
    node_id: str
    address: str
    engine: str  # whose engine runs its steps
    report: WorkerReport | None  # None: it does not answer


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What runs where, and how well the cache does, since this gateway started."""

    cluster: str
    model: str
    workers: tuple[WorkerStatus, ...]  # by id
    open_workflows: int
    running_steps: int
    predictor_reachable: bool
    predictor_address: str  # host:port; empty: none answered the last call
    index_reachable: bool
    totals: HitMeter
    decisions: Mapping[str, int]  # the gateway's, by reason code
    log_path: str  # file that this process writes its log to; empty: none
    discovery_url: str = ""  # where Prometheus finds the metrics of all members; empty: nowhere
    dashboard_url: str = ""  # page for operators; empty: none
    members: tuple[MemberEntry, ...] = ()  # by name; empty: nobody watches them, or the index is not reachable
    nodes: tuple[NodeStateEntry, ...] = ()  # by host; empty likewise
    http_address: str = ""  # host:port of the gateway's HTTP API; empty: not served, or the index is not reachable
    problems: tuple[ProblemsEntry, ...] = ()  # of members that serve nevertheless, and what they count


@dataclass(slots=True)
class StatusReader:
    """Puts the status of the cluster together."""

    config: Config
    pool: WorkerPool
    workflows: OpenWorkflows
    admission: Admission
    feed: EventFeed
    meter: GatewayMeter
    decisions: Decisions
    directory: Directory
    everywhere: Everywhere

    async def read(self) -> ClusterStatus:
        """The status now, as this gateway knows it by itself; a worker that does not answer within a second has no report."""
        known = sorted(self.pool.known(), key=lambda worker: worker.key)
        workers = await asyncio.gather(*map(_status, known))
        return ClusterStatus(
            cluster=self.config.cluster.name,
            model=self.config.model.path or (known[0].entry.namespace.model if known else ""),
            workers=tuple(workers),
            open_workflows=len(self.workflows),
            running_steps=self.admission.running_here,
            predictor_reachable=self.feed.reachable,
            predictor_address=self.feed.address,
            index_reachable=self.pool.index_reachable,
            totals=deepcopy(self.meter.totals),
            decisions={str(reason): count for reason, count in self.decisions.items()},
            discovery_url=await self._url(HEAD, DISCOVERY_PATH),
            dashboard_url=await self._url(DASHBOARD, "/"),
            members=await self._members(),
            nodes=await self._nodes(),
            problems=await self._problems(),
            log_path=_log_path(),
            http_address=await self._http_address(),
        )

    async def _url(self, service: str, path: str) -> str:
        """Of a service that speaks HTTP; empty if it is not announced."""
        try:
            address = await self.directory.service_address(service)
        except Unavailable:
            return ""  # `index_reachable` tells
        return f"{this_process().http}://{address}{path}" if address else ""

    async def _members(self) -> tuple[MemberEntry, ...]:
        try:
            return tuple(await self.directory.members())
        except Unavailable:
            return ()  # `index_reachable` tells

    async def _nodes(self) -> tuple[NodeStateEntry, ...]:
        try:
            return tuple(await self.directory.node_states())
        except Unavailable:
            return ()  # `index_reachable` tells

    async def _http_address(self) -> str:
        """Of this gateway."""
        mine = (each for each in await self.everywhere.gateways() if self.everywhere.is_me(each))
        return next((each.http_address for each in mine), "")

    async def _problems(self) -> tuple[ProblemsEntry, ...]:
        try:
            return tuple(await self.directory.problems())
        except Unavailable:
            return ()  # `index_reachable` tells


def _log_path() -> str:
    """The file that standard error goes to: Ray gives each member one, and logging writes there."""
    try:
        target = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return target if os.path.isfile(target) else ""


async def _status(worker: Worker) -> WorkerStatus:
    entry = worker.entry
    return WorkerStatus(entry.worker_id, entry.node_id, entry.address, entry.engine, await worker.report())
