"""The worker's metrics, read when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount, PrefetchSource
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.kv.lanes.copy_meter import CopyMeter
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.gpu_worker.predictor_link.link import PredictorLink

_ACCESS_LOGS = {"sent": "access_log_sent", "dropped": "access_log_dropped", "refused": "access_log_refused"}


@dataclass(slots=True)
class WorkerFigures:
    """Reads what the parts of a worker count; what is the engine's, between two of its batches."""

    thread: EngineThread
    memory: PoolMemory
    copies: CopyMeter | None  # None: there is no host tier
    predictor: PredictorLink | None
    problems: Callable[[], Sequence[str]]
    clock: Clock

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape.

        Raises:
            Unavailable: the engine has ended.
        """
        await self.thread.call(lambda engine: self._put_engine(figures, engine))
        figures.put(names.PINNED_BYTES, self.memory.pinned_bytes)
        figures.put(names.PROBLEMS, len(self.problems()))
        if self.copies is not None:
            self._put_copies(figures, self.copies)
        if self.predictor is not None:
            self._put_predictor(figures, self.predictor)

    def _put_engine(self, figures: Figures, engine: Engine) -> None:
        scheduler, cache = engine.scheduler, engine.cache
        figures.put(names.ENGINE_BATCHES, engine.steps)
        figures.put(names.RUNNING_STEPS, len(scheduler.running))
        figures.put(names.WAITING_STEPS, scheduler.waiting)
        figures.put(names.WAITING_TOKENS, scheduler.waiting_tokens)
        figures.put(names.PREFILL_RATE, engine.prefill_tokens_per_s)
        figures.put_each(names.SCHEDULER_DECISIONS, scheduler.decisions)
        blocks = {code: times for code, times in cache.tiers.decisions.items() if not code.startswith("guard_")}
        figures.put_each(names.CACHE_BLOCKS, blocks)
        figures.put(names.OPEN_WORKFLOWS, len(cache.workflows.all()))
        figures.put(names.CACHE_NODES, cache.tree.nodes)
        figures.put(names.LEASED_BLOCKS, cache.leases.blocks)
        figures.put(names.TRANSFERS_IN_FLIGHT, len(cache.tiers.in_flight))
        ahead = cache.tiers.prefetched
        figures.put_each(names.PREFETCHED_BLOCKS, _outcomes(ahead.total))
        for reason in PrefetchSource:
            figures.put_each(names.STAGED_BLOCKS, _outcomes(ahead.staging.count(reason)), reason.value)
        self._put_tiers(figures, cache)
        guard = cache.guard()
        if guard is not None:
            _put_guard(figures, guard)

    def _put_tiers(self, figures: Figures, cache: KVCache) -> None:
        size = self.memory.block_bytes
        for tier in cache.tiers:
            kind, capacity = tier.kind, tier.pool.capacity
            figures.put(names.ROOM_WAIT_SECONDS, cache.tiers.in_flight.waited_s[kind], kind.value)
            figures.put(names.TIER_CAPACITY_BYTES, capacity * size, kind.value)
            figures.put(names.TIER_USED_BYTES, cache.used_blocks(kind) * size, kind.value)
            figures.put(names.TIER_LOCKED_BYTES, cache.locked_blocks(kind) * size, kind.value)
            figures.put(names.TIER_READY_BYTES, self.memory.ready_blocks(kind, capacity) * size, kind.value)

    def _put_copies(self, figures: Figures, copies: CopyMeter) -> None:
        figures.put(names.DAMAGED_BLOCKS, copies.damaged_blocks)
        for (source, target), blocks in copies.blocks.items():
            figures.put(names.TRANSFER_BYTES, blocks * self.memory.block_bytes, source.value, target.value)
            figures.put(names.TRANSFER_SECONDS, copies.seconds[source, target], source.value, target.value)

    def _put_predictor(self, figures: Figures, predictor: PredictorLink) -> None:
        figures.put(names.PREDICTOR_REACHABLE, predictor.is_connected)
        figures.put(names.FORECASTS_APPLIED, predictor.forecasts.applied)
        if predictor.forecasts.made_at:
            figures.put(names.FORECAST_AGE_SECONDS, max(self.clock.wall() - predictor.forecasts.made_at, 0.0))
        if predictor.model_updates is not None:
            figures.put(names.MODEL_UPDATES, predictor.model_updates.applied)
        if predictor.access_logs is not None:
            decisions = predictor.access_logs.decisions
            figures.put_each(names.ACCESS_LOGS, {outcome: decisions[code] for outcome, code in _ACCESS_LOGS.items()})


def _put_guard(figures: Figures, guard: GuardStat) -> None:
    figures.put(names.GUARD_LRU_ACTIVE, guard.lru_active)
    figures.put(names.GUARD_SWITCHES, guard.switches)
    figures.put(names.GUARD_PROMPT_TOKENS, guard.prompt_tokens)
    for order, hits in (("cache", guard.hits), ("lru", guard.lru_hits), ("policy", guard.policy_hits)):
        figures.put(names.GUARD_HIT_TOKENS, hits.tokens, order)
        figures.put(names.GUARD_GPU_HIT_TOKENS, hits.gpu_tokens, order)
    figures.put_each(names.GUARD_EVICTED_BLOCKS, {"lru": guard.evicted_by_lru, "policy": guard.evicted_by_policy})
    figures.put(names.GUARD_SAVED_SECONDS, guard.saved_s)


def _outcomes(count: PrefetchCount) -> Mapping[str, int]:
    return {"loaded": count.loaded, "used": count.used, "wasted": count.wasted, "cancelled": count.cancelled}
