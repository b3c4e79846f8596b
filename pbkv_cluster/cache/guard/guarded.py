"""A cache with a guard: it follows its policy for as long as LRU would not have hit more."""

from collections.abc import Callable, Mapping

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.guard.balance import Balance, GuardStat
from pbkv_cluster.cache.guard.shadow import Shadow
from pbkv_cluster.cache.handle import CacheHandle
from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.usage import Tier

BASELINE = "lru"


class GuardedCache(KVCache):
    """A cache that leans to LRU while its policy does worse. Two shadows, of LRU and of the policy, are shown every step.

    Leaning, the GPU tier evicts in the order of LRU, which is kept up to date beside the policy's: nothing is scanned when the
    guard changes its mind. Prefetches still make room as the policy says, among retired blocks. The host tier is as ever.

    Memory: the two shadows, each as large as the GPU tier's bookkeeping.
    """

    def __init__(
        self,
        capacity: Mapping[Tier, int],
        config: CacheConfig,
        engine: TransferEngine,
        clock: Clock,
        on_change: ChangeListener | None = None,
        compute_seconds: Callable[[int], float] = lambda tokens: float("inf"),
    ) -> None:
        """See `KVCache`."""
        super().__init__(capacity, config, engine, clock, on_change, compute_seconds)
        self.tiers.keep_lru()
        self._lru = Shadow(capacity[Tier.GPU], config, make_policy(BASELINE, config), clock, self.popularity)
        self._policy = Shadow(capacity[Tier.GPU], config, self._policies[0].twin(config), clock, self.popularity)
        self.shadows = (self._lru, self._policy)
        self._balance = Balance(config.guard_floor, config.guard_steps)
        # Of running steps whose output has filled a block, the tokens and how many of them have been computed.
        self._outputs: dict[CacheHandle, tuple[bytes | bytearray, int]] = {}
        self._prompt_tokens = self._hit_tokens = self._lru_hits = self._policy_hits = 0

    def queued(self, workflow: str, tokens: bytes) -> None:
        super().queued(workflow, tokens)
        self._policy.cache.queued(workflow, tokens)

    def open(
        self,
        namespace: Namespace,
        tokens: bytes,
        workflow: str,
        agent: str,
        step: int,
        prompt_tokens: int,
        reserve: int = 0,
        again: bool = False,
        graph: StepGraph | None = None,
        beside: CacheHandle | None = None,
    ) -> CacheHandle | None:
        lease = super().open(namespace, tokens, workflow, agent, step, prompt_tokens, reserve, again, graph, beside)
        if lease is None:
            return None
        lru, policy = (
            shadow.open(lease, namespace, tokens, workflow, agent, step, prompt_tokens, graph) for shadow in self.shadows
        )
        if not again:
            self._prompt_tokens += prompt_tokens
            self._hit_tokens += min(lease.delivered.get(Tier.GPU, 0), prompt_tokens)
            self._lru_hits += lru
            self._policy_hits += policy
            if self._balance.add(lru, policy):
                self.tiers.lean = self._balance.leaning
                self.tiers.decisions["guard_lean" if self.tiers.lean else "guard_recover"] += 1
        return lease

    def commit(self, lease: CacheHandle, tokens: bytes | bytearray, computed: int | None = None) -> None:
        in_prompt = lease.committed < lease.prompt_blocks
        super().commit(lease, tokens, computed)
        if in_prompt:
            for shadow in self.shadows:
                shadow.enter(lease, tokens, computed)
        else:
            self._outputs[lease] = tokens, len(tokens) // TOKEN_BYTES if computed is None else computed  # `tokens` may grow

    def close(self, lease: CacheHandle) -> None:
        output = self._outputs.pop(lease, None)
        if output is not None:
            for shadow in self.shadows:
                shadow.enter(lease, *output)
        super().close(lease)  # before the shadows: what the policy learns of it, its twin knows then
        for shadow in self.shadows:
            shadow.close(lease)

    def retire(self, workflow: str) -> None:
        super().retire(workflow)
        for shadow in self.shadows:
            shadow.cache.retire(workflow)

    def apply(self, forecast: Forecast) -> bool:
        applied = super().apply(forecast)
        if applied:
            self._policy.cache.apply(forecast)  # to LRU it means nothing
        return applied

    def clear(self) -> int:
        for shadow in self.shadows:
            shadow.cache.clear()
        return super().clear()

    def guard(self) -> GuardStat:
        decisions = self.tiers.decisions
        return GuardStat(
            leaning=self.tiers.lean,
            switches=decisions["guard_lean"] + decisions["guard_recover"],
            prompt_tokens=self._prompt_tokens,
            hit_tokens=self._hit_tokens,
            lru_hit_tokens=self._lru_hits,
            policy_shadow_hit_tokens=self._policy_hits,
            evicted_by_lru=self.tiers.evicted_by_lru,
            evicted_by_policy=self.tiers.evicted_by_policy,
        )

    def check_integrity(self) -> None:
        super().check_integrity()
        for shadow in self.shadows:
            shadow.cache.check_integrity()


def make_cache(
    capacity: Mapping[Tier, int],
    config: CacheConfig,
    engine: TransferEngine,
    clock: Clock,
    on_change: ChangeListener | None = None,
    compute_seconds: Callable[[int], float] = lambda tokens: float("inf"),
) -> KVCache:
    """A cache, with a guard where there is one to be had: `lru` itself needs none. See `KVCache`."""
    kind = GuardedCache if config.guard and config.policy != BASELINE else KVCache
    return kind(capacity, config, engine, clock, on_change, compute_seconds)
