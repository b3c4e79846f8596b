"""Watches over a cache's policy: the GPU tier evicts by LRU for as long as that would hit more."""

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.guard.balance import Balance
from pbkv_cluster.cache.guard.shadow import Shadow
from pbkv_cluster.cache.observer import CacheObserver, GuardStat
from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.step_identity import StepIdentity
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.usage import Tier

BASELINE = "lru"


class Guard(CacheObserver):
    """Shows every step to two shadows, one of LRU and one of the policy, and falls back to LRU while the policy's hits less.

    The GPU tier then evicts in the order of LRU, which is always kept next to the policy's, so that a switch needs no scan.
    Prefetches still make room in the policy's order, among retired blocks, and the host tier always follows its own policy.

    Memory: the two shadows, each as large as the GPU tier's bookkeeping.
    """

    def __init__(self, cache: KVCache, config: CacheConfig, clock: Clock) -> None:
        """Args:
        cache: an empty one.
        config: the cache's.
        clock: the cache's.
        """
        self._tiers = cache.tiers
        self._tiers.keep_lru()
        blocks = cache.tiers.gpu.pool.capacity
        self._lru = Shadow(blocks, config, make_policy(BASELINE, config), clock)
        self._policy = Shadow(blocks, config, cache.policies[0].twin(config), clock)
        self.shadows = (self._lru, self._policy)
        self._balance = Balance(config.guard_floor, config.guard_steps)
        # Of running steps that have committed output: their tokens, and how many of them have been computed.
        self._outputs: dict[CacheHandle, tuple[bytes | bytearray, int]] = {}
        self._prompt_tokens = self._hit_tokens = self._lru_hits = self._policy_hits = 0

    def step_queued(self, workflow: str, tokens: bytes) -> None:
        self._policy.cache.queued(workflow, tokens)

    def step_opened(self, step: StepIdentity, tokens: bytes, handle: CacheHandle, again: bool) -> None:
        lru, policy = (shadow.open(step, tokens, handle) for shadow in self.shadows)
        if again:
            return
        self._prompt_tokens += step.prompt_tokens
        self._hit_tokens += min(handle.delivered.get(Tier.GPU, 0), step.prompt_tokens)
        self._lru_hits += lru
        self._policy_hits += policy
        if self._balance.add(lru, policy):
            self._tiers.lru_active = self._balance.lru_active
            self._tiers.decisions["guard_lean" if self._tiers.lru_active else "guard_recover"] += 1

    def blocks_committed(self, handle: CacheHandle, start: int, tokens: bytes | bytearray, computed: int | None) -> None:
        if start < handle.prompt_blocks:
            for shadow in self.shadows:
                shadow.enter(handle, tokens, computed)
        else:  # `tokens` may grow before the step closes
            self._outputs[handle] = tokens, len(tokens) // TOKEN_BYTES if computed is None else computed

    def step_closing(self, handle: CacheHandle) -> None:
        output = self._outputs.pop(handle, None)
        if output is not None:
            for shadow in self.shadows:
                shadow.enter(handle, *output)

    def step_closed(self, handle: CacheHandle) -> None:
        # Only now that the policy has been told of it: its twin shares what it knows.
        for shadow in self.shadows:
            shadow.close(handle)

    def workflow_retired(self, workflow: str) -> None:
        for shadow in self.shadows:
            shadow.cache.retire(workflow)

    def forecast_applied(self, forecast: Forecast) -> None:
        self._policy.cache.apply(forecast)  # LRU uses none

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
