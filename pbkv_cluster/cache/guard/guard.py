"""Watches over a cache's policy: all tiers evict by LRU for as long as that would cost less."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.guard.balance import Balance
from pbkv_cluster.cache.guard.cost import CostMeter
from pbkv_cluster.cache.guard.shadow import Shadow
from pbkv_cluster.cache.observer import CacheObserver, GuardStat, Hits
from pbkv_cluster.cache.policies.base import ReusePolicy, make_policy
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.tool_call import ToolCall

BASELINE = "lru"


class Guard(CacheObserver):
    """Compares what the policy costs with what LRU would on every step, and falls back to LRU while the policy costs more.

    A step costs the prefill of what no tier delivers, and the loads of what slower tiers do. LRU is that of all tiers, as it
    would be without us.

    | all tiers evict by | LRU's costs are those of | the policy's costs are those of |
    |---|---|---|
    | the policy | a shadow | the cache itself |
    | LRU | the same shadow | another shadow |

    Cache and shadow can be compared because a shadow is shown all blocks as soon as they are committed, those of outputs too:
    under one policy their hits differ by less than half a percent. (A shadow that saw outputs at their ends only had 3 to 5 %
    more hits than the cache, since it had more room meanwhile.)

    What was prefetched counts as loaded by the step: a policy is not better because its blocks were fetched back in time.

    A shadow of the policy can cost several times as much as one of LRU, so it exists only while it is needed. It starts empty,
    and until it has been full once nothing is compared. A guard that never falls back changes nothing in the cache.

    The order of LRU is always kept next to the policy's, so that a switch needs no scan. While LRU is active, prefetches still
    make room in the policy's order, among retired blocks.

    Memory: each shadow is as large as the cache's bookkeeping.
    """

    def __init__(
        self,
        cache: KVCache,
        config: CacheConfig,
        engine: TransferEngine,
        clock: Clock,
        compute_seconds: Callable[[int], float],
    ) -> None:
        """Args:
        cache: an empty one.
        config: the cache's.
        engine: the cache's.
        clock: the cache's.
        compute_seconds: the cache's.
        """
        self._tiers = cache.tiers
        self._tiers.keep_lru()
        self._policies = cache.policies
        self._config = config
        self._engine = engine
        self._clock = clock
        self._compute_seconds = compute_seconds
        self._meter = CostMeter(self._tiers.costs.copy_seconds, compute_seconds)
        baseline = make_policy(BASELINE, config)
        self._lru_shadow = self._shadow(dict.fromkeys(self._policies, baseline))
        self._policy_shadow: Shadow | None = None  # while LRU is active
        self._balance = Balance(config.guard_confidence, config.guard_steps)
        self._prompt_tokens = 0
        self._own, self._lru, self._policy = Hits(), Hits(), Hits()
        self._saved_s = 0.0

    @property
    def shadows(self) -> tuple[Shadow, ...]:
        """That of LRU and, while LRU is active, that of the policy."""
        return (self._lru_shadow,) if self._policy_shadow is None else (self._lru_shadow, self._policy_shadow)

    def fall_back(self) -> None:
        """Makes all tiers evict by LRU."""
        self._policy_shadow = self._shadow(
            {policy: policy.for_shadow(self._config) for policy in dict.fromkeys(self._policies)}
        )
        self._tiers.lru_active = True
        self._balance.restart(lru_active=True)
        self._tiers.decisions["guard_fall_back"] += 1

    def recover(self) -> None:
        """Makes all tiers evict by the policy again."""
        assert self._policy_shadow is not None
        self._policy_shadow.end()
        self._policy_shadow = None
        self._tiers.lru_active = False
        self._balance.restart(lru_active=False)
        self._tiers.decisions["guard_recover"] += 1

    def _shadow(self, instead: Mapping[ReusePolicy, ReusePolicy]) -> Shadow:
        """A shadow with other policies instead of the cache's."""
        capacity = {tier.kind: tier.pool.capacity for tier in self._tiers}
        policies = [instead[policy] for policy in self._policies]
        return Shadow(capacity, self._config, policies, self._engine, self._clock, self._compute_seconds)

    def step_queued(self, workflow: str, number: int, tokens: bytes) -> None:
        if self._policy_shadow is not None:
            self._policy_shadow.cache.queued(workflow, number, tokens)

    def step_opened(self, step: StepIdentity, tokens: bytes, handle: CacheHandle, again: bool) -> None:
        own = handle.delivered
        lru = _with_fetched(self._lru_shadow.open(step, tokens, handle), handle)
        policy = own if self._policy_shadow is None else _with_fetched(self._policy_shadow.open(step, tokens, handle), handle)
        if again:
            return
        self._prompt_tokens += step.prompt_tokens
        for hits, delivered in ((self._own, own), (self._lru, lru), (self._policy, policy)):
            hits.add(delivered)
        loaded = _without_staging(_without_prefetch(own, handle.prefetched_tokens), handle.staged)
        if policy is own:
            policy = loaded
        own_cost, lru_cost, policy_cost = (self._meter.cost(step.prompt_tokens, each) for each in (loaded, lru, policy))
        if math.isfinite(lru_cost.seconds) and math.isfinite(own_cost.seconds):
            self._saved_s += lru_cost.seconds - own_cost.seconds
        if self._policy_shadow is not None and not self._policy_shadow.has_dropped:
            return
        if self._balance.add(policy_cost.tokens, lru_cost.tokens):
            if self._balance.lru_active:
                self.fall_back()
            else:
                self.recover()

    def blocks_committed(self, handle: CacheHandle, tokens: bytes | bytearray, computed: int | None) -> None:
        for shadow in self.shadows:
            shadow.enter(handle, tokens, computed)

    def step_closing(self, handle: CacheHandle) -> None:
        for shadow in self.shadows:
            shadow.grow(handle)

    def step_closed(self, handle: CacheHandle) -> None:
        # Only now that the policy has been told of it: the shadow's policy shares what it knows.
        for shadow in self.shadows:
            shadow.close(handle)

    def step_heard(self, workflow: str, namespace: Namespace, position: int) -> None:
        if self._policy_shadow is not None:  # LRU uses no records
            self._policy_shadow.hear(workflow, namespace, position)

    def workflow_retired(self, workflow: str) -> None:
        for shadow in self.shadows:
            shadow.cache.retire(workflow)

    def tool_called(self, workflow: str, call: ToolCall, started: bool) -> None:
        if self._policy_shadow is not None:  # LRU uses none
            self._policy_shadow.cache.tool_call(workflow, call, started)

    def forecast_applied(self, forecast: Forecast) -> None:
        if self._policy_shadow is not None:  # LRU uses none
            self._policy_shadow.cache.apply(forecast)

    def blocks_leased(self, namespace: Namespace, tokens: bytes, lease_id: str, seconds: float, workflow: str) -> None:
        for shadow in self.shadows:
            shadow.cache.requests.lease(namespace, tokens, lease_id, seconds, workflow)

    def blocks_released(self, tenant: str, lease_id: str) -> None:
        for shadow in self.shadows:
            shadow.cache.requests.release(tenant, lease_id)

    def cleared(self) -> None:
        for shadow in self.shadows:
            shadow.cache.clear()

    def stat(self) -> GuardStat:
        decisions = self._tiers.decisions
        return GuardStat(
            lru_active=self._tiers.lru_active,
            switches=decisions["guard_fall_back"] + decisions["guard_recover"],
            prompt_tokens=self._prompt_tokens,
            hits=replace(self._own),
            lru_hits=replace(self._lru),
            policy_hits=replace(self._policy),
            saved_s=self._saved_s,
            evicted_by_lru=self._tiers.evicted_by_lru,
            evicted_by_policy=self._tiers.evicted_by_policy,
        )

    def check_integrity(self) -> None:
        for shadow in self.shadows:
            shadow.cache.check_integrity()


def _with_fetched(delivered: Mapping[Tier, int], handle: CacheHandle) -> Mapping[Tier, int]:
    """What a shadow would have had of a step if it, too, had fetched what other workers held.

    Known to be with them is what the cache has fetched or staged. A shadow's prefix that ends there goes on in what they hold.
    """
    brought = {tier: tokens for tier, tokens in (*handle.staged.items(), *handle.fetched.items()) if tier is not Tier.DISK}
    if not brought:
        return delivered
    reach, end = sum(delivered.values()), sum(handle.delivered.values())
    if not end - sum(brought.values()) <= reach < end:
        return delivered
    slowest = next(reversed(brought))
    return {**delivered, slowest: delivered.get(slowest, 0) + end - reach}


def _without_prefetch(delivered: Mapping[Tier, int], tokens: int) -> Mapping[Tier, int]:
    """What each tier would have delivered if `tokens` of those on the GPU had not been prefetched."""
    if not tokens:
        return delivered
    gpu, host = (delivered.get(tier, 0) for tier in (Tier.GPU, Tier.HOST))
    return {**delivered, Tier.GPU: gpu - tokens, Tier.HOST: host + tokens}


def _without_staging(delivered: Mapping[Tier, int], staged: Mapping[Tier, int]) -> Mapping[Tier, int]:
    """What each tier would have delivered if what was staged had stayed where it lay, as far as host memory delivered it."""
    for source, tokens in staged.items():
        moved = min(tokens, delivered.get(Tier.HOST, 0))
        delivered = {**delivered, Tier.HOST: delivered.get(Tier.HOST, 0) - moved, source: delivered.get(source, 0) + moved}
    return delivered
