"""What a cache tells its guard, and what a guard reports."""

from collections.abc import Mapping
from dataclasses import dataclass

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.tool_call import ToolCall


@dataclass(slots=True)
class Hits:
    """Prompt tokens that were found in the cache when steps were admitted."""

    gpu_tokens: int = 0
    tokens: int = 0  # in all tiers

    def add(self, delivered: Mapping[Tier, int]) -> None:
        """Counts a step, by the tokens that each tier has delivered."""
        self.gpu_tokens += delivered.get(Tier.GPU, 0)
        self.tokens += sum(delivered.values())


@dataclass(frozen=True, slots=True)
class GuardStat:
    """What a guard has seen and done since the start. Evicted are blocks of the GPU."""

    lru_active: bool  # all tiers evict by LRU now
    switches: int  # to LRU and back
    prompt_tokens: int
    hits: Hits  # of the cache
    lru_hits: Hits  # that LRU alone would have had
    policy_hits: Hits  # that the policy alone would have had, by a shadow while LRU is active
    saved_s: float  # seconds of prefill and loads that LRU alone would have cost more; below 0: less
    evicted_by_lru: int
    evicted_by_policy: int


class CacheObserver:
    """Is told what happens in a cache, after it has happened unless said otherwise. This one does nothing."""

    def step_queued(self, workflow: str, number: int, tokens: bytes) -> None:
        """A step waits for admission, or no longer does; see `KVCache.queued`."""

    def step_opened(self, step: StepIdentity, tokens: bytes, handle: CacheHandle, again: bool) -> None:
        """A step was admitted; see `KVCache.open`."""

    def blocks_committed(self, handle: CacheHandle, tokens: bytes | bytearray, computed: int | None) -> None:
        """Blocks of a step were committed; see `KVCache.commit`."""

    def step_closing(self, handle: CacheHandle) -> None:
        """A step is about to end, or to be preempted; it still has its blocks."""

    def step_closed(self, handle: CacheHandle) -> None:
        """A step has ended, or was preempted."""

    def step_heard(self, workflow: str, namespace: Namespace, position: int) -> None:
        """A step with that position in its workflow's record has begun or ended on another worker."""

    def workflow_retired(self, workflow: str) -> None:
        """A workflow has ended."""

    def tool_called(self, workflow: str, call: ToolCall, started: bool) -> None:
        """A workflow has begun to wait for a tool, or no longer does."""

    def forecast_applied(self, forecast: Forecast) -> None:
        """A forecast of an active workflow was applied."""

    def blocks_leased(self, namespace: Namespace, tokens: bytes, lease_id: str, seconds: float, workflow: str) -> None:
        """A client has leased blocks; see `BlockLeases.lease`."""

    def blocks_released(self, tenant: str, lease_id: str) -> None:
        """A client has ended a lease."""

    def cleared(self) -> None:
        """All that no running sequence uses was dropped."""

    def stat(self) -> GuardStat | None:
        """What a guard has seen and done; None: there is no guard."""
        return None

    def check_integrity(self) -> None:
        """Raises:
        AssertionError: the observer contradicts itself.
        """
