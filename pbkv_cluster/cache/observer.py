"""What a cache tells its guard, and what a guard reports."""

from dataclasses import dataclass

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.tool_call import ToolCall


@dataclass(frozen=True, slots=True)
class GuardStat:
    """What a guard has seen and done since the start. Tokens are of prompts, hits on the GPU tier; evicted are its blocks."""

    lru_active: bool  # the GPU tier evicts by LRU now
    switches: int  # to LRU and back
    prompt_tokens: int
    hit_tokens: int  # by the cache
    lru_hit_tokens: int  # that LRU alone would have hit
    policy_shadow_hit_tokens: int  # that the policy alone would have hit, by a shadow while LRU is active
    evicted_by_lru: int
    evicted_by_policy: int

    @property
    def lru_share(self) -> float:
        """Share of the evicted blocks that LRU chose."""
        evicted = self.evicted_by_lru + self.evicted_by_policy
        return self.evicted_by_lru / evicted if evicted else 0.0


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

    def cleared(self) -> None:
        """All that no running sequence uses was dropped."""

    def stat(self) -> GuardStat | None:
        """What a guard has seen and done; None: there is no guard."""
        return None

    def check_integrity(self) -> None:
        """Raises:
        AssertionError: the observer contradicts itself.
        """
