"""Watches over a cache's policy: the GPU tier evicts by LRU for as long as that would hit more."""

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.guard.balance import Balance
from pbkv_cluster.cache.guard.shadow import Shadow
from pbkv_cluster.cache.observer import CacheObserver, GuardStat
from pbkv_cluster.cache.policies.base import ReusePolicy, make_policy
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import GPU
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.tool_call import ToolCall

BASELINE = "lru"


class Guard(CacheObserver):
    """Compares the policy's hits with LRU's on every step, and falls back to LRU while the policy's are fewer.

    | the GPU tier evicts by | LRU's hits are those of | the policy's hits are those of |
    |---|---|---|
    | the policy | a shadow | the cache itself |
    | LRU | the same shadow | another shadow |

    Cache and shadow can be compared because a shadow is shown all blocks as soon as they are committed, those of outputs too:
    under one policy their hits differ by less than half a percent. (A shadow that saw outputs at their ends only had 3 to 5 %
    more hits than the cache, since it had more room meanwhile.)

    A shadow of the policy can cost several times as much as one of LRU, so it exists only while it is needed. It starts empty,
    and until it has been full once nothing is compared. A guard that never falls back changes nothing in the cache.

    The order of LRU is always kept next to the policy's, so that a switch needs no scan. While LRU is active, prefetches still
    make room in the policy's order, among retired blocks. The host tier always follows its own policy.

    Memory: each shadow is as large as the GPU tier's bookkeeping.
    """

    def __init__(self, cache: KVCache, config: CacheConfig, clock: Clock) -> None:
        """Args:
        cache: an empty one.
        config: the cache's.
        clock: the cache's.
        """
        self._tiers = cache.tiers
        self._tiers.keep_lru()
        self._policy = cache.policies[GPU]
        self._config = config
        self._clock = clock
        self._lru_shadow = self._shadow(make_policy(BASELINE, config))
        self._policy_shadow: Shadow | None = None  # while LRU is active
        self._balance = Balance(config.guard_floor, config.guard_steps)
        self._prompt_tokens = self._hit_tokens = self._lru_hits = self._policy_hits = 0

    @property
    def shadows(self) -> tuple[Shadow, ...]:
        """That of LRU and, while LRU is active, that of the policy."""
        return (self._lru_shadow,) if self._policy_shadow is None else (self._lru_shadow, self._policy_shadow)

    def fall_back(self) -> None:
        """Makes the GPU tier evict by LRU."""
        self._policy_shadow = self._shadow(self._policy.for_shadow(self._config))
        self._tiers.lru_active = True
        self._balance.restart(lru_active=True)
        self._tiers.decisions["guard_lean"] += 1

    def recover(self) -> None:
        """Makes the GPU tier evict by the policy again."""
        assert self._policy_shadow is not None
        self._policy_shadow.end()
        self._policy_shadow = None
        self._tiers.lru_active = False
        self._balance.restart(lru_active=False)
        self._tiers.decisions["guard_recover"] += 1

    def _shadow(self, policy: ReusePolicy) -> Shadow:
        return Shadow(self._tiers.gpu.pool.capacity, self._config, policy, self._clock)

    def step_queued(self, workflow: str, number: int, tokens: bytes) -> None:
        if self._policy_shadow is not None:
            self._policy_shadow.cache.queued(workflow, number, tokens)

    def step_opened(self, step: StepIdentity, tokens: bytes, handle: CacheHandle, again: bool) -> None:
        hits = min(handle.delivered.get(Tier.GPU, 0), step.prompt_tokens)
        lru = self._lru_shadow.open(step, tokens, handle)
        policy = hits if self._policy_shadow is None else self._policy_shadow.open(step, tokens, handle)
        if again:
            return
        self._prompt_tokens += step.prompt_tokens
        self._hit_tokens += hits
        self._lru_hits += lru
        self._policy_hits += policy
        if self._policy_shadow is not None and not self._policy_shadow.has_evicted:
            return
        if self._balance.add(lru, policy):
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

    def cleared(self) -> None:
        for shadow in self.shadows:
            shadow.cache.clear()

    def stat(self) -> GuardStat:
        decisions = self._tiers.decisions
        return GuardStat(
            lru_active=self._tiers.lru_active,
            switches=decisions["guard_lean"] + decisions["guard_recover"],
            prompt_tokens=self._prompt_tokens,
            hit_tokens=self._hit_tokens,
            lru_hit_tokens=self._lru_hits,
            policy_shadow_hit_tokens=self._policy_hits,
            evicted_by_lru=self._tiers.evicted_by_lru,
            evicted_by_policy=self._tiers.evicted_by_policy,
        )

    def check_integrity(self) -> None:
        for shadow in self.shadows:
            shadow.cache.check_integrity()
