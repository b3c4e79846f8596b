"""Open workflows, agents and the cache, as JSON values: asked for while somebody looks, of workflows only what has changed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio

from pbkv_cluster.cache.decisions.reasons import reason_of
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.client.operator_connection import typed_errors
from pbkv_cluster.client.store import StoreClient
from pbkv_cluster.core.errors import FailedPrecondition, NotFound, PbkvError, Unavailable
from pbkv_cluster.dashboard.summary import WorkerUse
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import tier_from_wire, tiers_from_wire
from pbkv_cluster.rpc.v1 import inspection_pb2, predictor_pb2, predictor_pb2_grpc, store_pb2
from pbkv_cluster.store.cluster_index import WorkerEntry

Json = dict[str, Any]
Tokens = dict[str, int]  # by tier


_SHOWN = 12  # workflows
_AGENTS = 30  # call sites
_PATH = 24  # latest steps of one workflow
_NEXT = 4  # agents that are expected
_RUNS = 20  # of one workflow's cached blocks
_LISTED = 1000
_TIMEOUT_S = 3.0


class WorkflowReader:
    """Connections to the gateway, the predictor and the workers of a cluster, by their present addresses."""

    def __init__(self) -> None:
        self._gateway = ""
        self._inspection: InspectionClient | None = None
        self._store: StoreClient | None = None
        self._predictor = ""
        self._channel: aio.Channel | None = None
        self._known: dict[str, tuple[object, Json]] = {}  # by id: what it was like, and what was shown

    async def find(self, gateway: str, predictor: str) -> None:
        """Connects to other addresses than before; an empty one: there is none."""
        if gateway != self._gateway:
            await self._close_gateway()
            self._gateway = gateway
            if gateway:
                self._inspection, self._store = InspectionClient(gateway), StoreClient(gateway)
        if predictor != self._predictor:
            await self._close_predictor()
            self._predictor = predictor
            self._channel = connect(predictor) if predictor else None

    async def close(self) -> None:
        """Closes all connections."""
        await self._close_gateway()
        await self._close_predictor()

    async def workflows(self) -> Json:
        """Open workflows, those that were heard of last first: their paths, and what is expected of them.

        Raises:
            Unavailable: the gateway does not answer.
        """
        async with _answer_in_time():
            listed = await self._inspector().workflows(limit=_SHOWN)
        shown = await asyncio.gather(*map(self._workflow, listed.workflows))
        known = {summary.workflow_id for summary in listed.workflows}
        self._known = {name: entry for name, entry in self._known.items() if name in known}
        return {"open": listed.open, "shown": [each for each in shown if each is not None]}

    async def agents(self) -> list[Json]:
        """Call sites, those that have had most prompt tokens computed again first.

        Raises:
            Unavailable: the gateway does not answer.
        """
        async with _answer_in_time():
            listed = await self._inspector().agents(limit=_AGENTS)
        return [
            {
                "workload": agent.workload,
                "agent": agent.agent_id,
                "call_site": agent.call_site,
                "steps": agent.steps,
                "prompt": agent.prompt_tokens,
                "available": agent.available_tokens,
                "delivered": sum(tiers_from_wire(agent.delivered).values()),
                "parting": agent.parting_tokens if agent.parting_pairs else None,
            }
            for agent in listed.agents
        ]

    async def detail(self, workflow: str) -> Json:
        """All that is known of one open workflow: its steps, its forecast by expert, and its cached blocks.

        Raises:
            NotFound: it is not open.
            Unavailable: the gateway does not answer.
            InvalidArgument: this cannot be the id of a workflow.
        """
        async with _answer_in_time():
            found, forecast, (runs, decisions) = await asyncio.gather(
                self._inspector().workflow(workflow), self._explain(workflow), self._cached(workflow)
            )
        return {
            **_summary(found.summary),
            "lease_s": found.summary.lease_s,
            "started": found.summary.started_s,
            "workers": list(found.summary.worker_ids),
            "steps_kept": [_step(step) for step in found.steps[-_LISTED:]],
            "forecast": None if forecast is None else [_forecast_step(step) for step in forecast.steps],
            "experts": []
            if forecast is None
            else [{"name": expert.name, "weight": expert.weights[0] if expert.weights else 0.0} for expert in forecast.experts],
            "predictability": None if forecast is None else forecast.predictability,
            "cached": runs,
            "decisions": decisions,
        }

    async def block(self, key: str) -> Json:
        """Where a block lies, what it is worth there, and the last decisions about it.

        Raises:
            NotFound: no cache knows it, or has decided anything about it lately.
            Unavailable: the gateway or a worker does not answer.
            InvalidArgument: this cannot be the key of a block.
        """
        self._inspector()
        assert self._store is not None
        async with _answer_in_time():
            found = await self._store.explain_block(key)
        if len(found.keys) != 1:
            raise NotFound(f"no cache knows a block {key!r}")
        places = [_place(block, place) for block in found.blocks for place in block.places]
        return {"key": found.keys[0], "places": places, "decisions": [_decision(each) for each in found.decisions]}

    async def cached_by_workflow(self, workers: Sequence[WorkerEntry]) -> tuple[dict[str, Tokens], dict[str, WorkerUse]]:
        """Cached tokens by tier: of each active workflow over all workers, and, by worker, who uses them.

        A worker that does not answer is left out.
        """
        lists = await asyncio.gather(*(self._listed(worker) for worker in workers))
        active: dict[str, Tokens] = {}
        uses: dict[str, WorkerUse] = {}
        for worker, found in zip(workers, lists, strict=True):
            if found is None:
                continue
            use = uses[worker.worker_id] = WorkerUse({}, tiers_from_wire(found.shared))
            for entry in found.entries:
                into = active.setdefault(entry.name, {}) if entry.name else use.retired
                for tier, tokens in tiers_from_wire(entry.tiers).items():
                    into[tier] = into.get(tier, 0) + tokens
        return active, uses

    async def _listed(self, worker: WorkerEntry) -> store_pb2.ListCacheResponse | None:
        try:
            async with _answer_in_time(), StoreClient(worker.address) as store:
                return await store.list_cache(by="workflow", limit=_LISTED)
        except PbkvError:
            return None  # its scrape tells that it does not answer

    async def _workflow(self, summary: inspection_pb2.WorkflowSummary) -> Json | None:
        moment = summary.steps, summary.running_steps, summary.tool
        known = self._known.get(summary.workflow_id)
        if known is None or known[0] != moment:
            try:
                found = await self._inspector().workflow(summary.workflow_id)
                forecast = await self._explain(summary.workflow_id)
            except NotFound:
                return None  # it has ended meanwhile
            path = [step.agent_id for step in found.steps[-_PATH:]]
            next_step = _forecast_step(forecast.steps[0]) if forecast is not None and forecast.steps else None
            known = self._known[summary.workflow_id] = moment, {"path": path, "next": next_step}
        return {**_summary(summary), **known[1]}

    async def _cached(self, workflow: str) -> tuple[list[Json], list[Json]]:
        """The largest runs of a workflow's cached blocks, and the last decisions about its blocks."""
        assert self._store is not None
        try:
            listed = await self._store.list_cache(limit=_RUNS, workflow=workflow, last_decisions=True)
            decisions = await self._store.decisions_about(workflow)
        except (Unavailable, FailedPrecondition):
            return [], []  # a worker is away, whose state is told elsewhere, or its engine does not tell
        runs = [
            {
                "key": run.name,
                "worker": run.worker_id,
                "start": run.start_tokens,
                "tokens": run.tokens,
                "tiers": {str(tier): tokens for tier, tokens in tiers_from_wire(run.tiers).items()},
                "agents": list(run.agents),
                "workflows": len(run.workflows),
                "in_use": run.in_use,
                "idle_s": run.idle_s,
                "last": _decision(run.last_decision) if run.HasField("last_decision") else None,
            }
            for run in listed.entries
        ]
        return runs, [_decision(each) for each in decisions]

    async def _explain(self, workflow: str) -> predictor_pb2.ExplainResponse | None:
        """The forecast; None if the predictor is away or does not know the workflow yet."""
        if self._channel is None:
            return None
        try:
            with typed_errors():
                request = predictor_pb2.ExplainRequest(workflow_id=workflow)
                return await predictor_pb2_grpc.PredictorServiceStub(self._channel).Explain(request, timeout=_TIMEOUT_S)
        except (NotFound, Unavailable):
            return None

    def _inspector(self) -> InspectionClient:
        if self._inspection is None:
            raise Unavailable("no gateway is announced")
        return self._inspection

    async def _close_gateway(self) -> None:
        for client in (self._inspection, self._store):
            if client is not None:
                await client.close()
        self._inspection = self._store = None

    async def _close_predictor(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


@asynccontextmanager
async def _answer_in_time() -> AsyncIterator[None]:
    """Raises Unavailable if what is asked inside is not answered in time."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            yield
    except TimeoutError:
        raise Unavailable(f"there is no answer after {_TIMEOUT_S:g} s") from None


def _summary(summary: inspection_pb2.WorkflowSummary) -> Json:
    return {
        "id": summary.workflow_id,
        "workload": summary.workload,
        "steps": summary.steps,
        "running": summary.running_steps,
        "agent": summary.agent_id,
        "tool": summary.tool,
        "idle_s": round(summary.idle_s, 1),
    }


def _step(step: inspection_pb2.StepSummary) -> Json:
    return {
        "step": step.step,
        "agent": step.agent_id,
        "call_site": step.call_site,
        "started": step.started_s,
        "duration_s": step.duration_s if step.HasField("duration_s") else None,
        "prompt": step.prompt_tokens,
        "output": step.output_tokens,
        "tools": list(step.tools),
    }


def _decision(decision: store_pb2.CacheDecision) -> Json:
    reason = reason_of(decision.reason)
    return {
        "worker": decision.worker_id,
        "what": decision.reason if reason is None else str(reason.kind),
        "why": "" if reason is None else reason.words,
        "code": decision.reason,
        "age_s": decision.age_s,
        "blocks": decision.blocks,
        "key": decision.key,
        "value": decision.value if decision.HasField("value") else None,
        "by_lru": decision.by_lru,
    }


def _place(block: store_pb2.CachedBlock, place: store_pb2.CachedBlock.Place) -> Json:
    return {
        "worker": block.worker_id,
        "tier": str(tier_from_wire(place.tier)),
        "policy": "LRU" if place.by_lru else block.policy,
        "value": None if place.by_lru else place.value,
        "standing": place.standing,
        "ahead": place.ahead,
        "candidates": place.candidates,
        "copy": place.is_copy,
    }


def _forecast_step(step: predictor_pb2.ExplainResponse.Step) -> Json:
    agents = [{"agent": agent.agent_id, "probability": agent.probability} for agent in step.agents if agent.probability > 0]
    return {"survival": step.survival, "agents": agents[:_NEXT]}
