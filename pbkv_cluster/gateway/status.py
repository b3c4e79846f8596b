"""GetClusterStatus: what runs where, asked of every worker at once."""

import asyncio
from dataclasses import dataclass

from grpc import aio

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import HitMeter
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.worker_pool import Worker, WorkerPool
from pbkv_cluster.gateway.step.step import Admission
from pbkv_cluster.gateway.workflow.sessions import Sessions
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import worker_pb2, workflow_pb2

_WorkerEntry = workflow_pb2.GetClusterStatusResponse.Worker

_TIMEOUT_S = 1.0


@dataclass(slots=True)
class StatusReport:
    """Puts the status of the cluster together."""

    config: Config
    pool: WorkerPool
    sessions: Sessions
    admission: Admission
    feed: EventFeed
    meter: HitMeter
    decisions: Decisions

    async def read(self) -> workflow_pb2.GetClusterStatusResponse:
        """The status now; a worker that does not answer within a second is shown as not reachable."""
        known = sorted(self.pool.known(), key=lambda worker: worker.key)
        workers: list[_WorkerEntry] = await asyncio.gather(*map(_ask, known))
        model = self.config.model.path or (known[0].record.namespace.model if known else "")
        return workflow_pb2.GetClusterStatusResponse(
            cluster=self.config.cluster.name,
            model=model,
            workers=workers,
            open_workflows=len(self.sessions),
            running_steps=len(self.admission),
            predictor_reachable=self.feed.reachable,
            predictor_address=self.feed.address,
            index_reachable=self.pool.index_reachable,
            totals=_totals(self.meter),
            decisions={str(reason): count for reason, count in self.decisions.items()},
        )


async def _ask(worker: Worker) -> _WorkerEntry:
    record = worker.record
    entry = _WorkerEntry(worker_id=record.worker_id, node_id=record.node_id, address=record.address)
    try:
        with worker.calling() as stub:
            answer = await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=_TIMEOUT_S)
    except (aio.AioRpcError, Unavailable):
        return entry
    entry.reachable = True
    entry.store.CopyFrom(answer.store)
    entry.running, entry.waiting = answer.running, answer.waiting
    entry.access_updates_applied, entry.access_workflows = answer.access_updates_applied, answer.access_workflows
    return entry


def _totals(meter: HitMeter) -> workflow_pb2.GetClusterStatusResponse.Totals:
    return workflow_pb2.GetClusterStatusResponse.Totals(
        steps=meter.steps,
        prompt_tokens=meter.prompt_tokens,
        available_tokens=meter.available_tokens,
        captured=convert.tiers_to_wire(meter.captured),
        delivered=convert.tiers_to_wire(meter.delivered),
        computed_tokens=meter.computed_tokens,
        generated_tokens=meter.generated_tokens,
    )
