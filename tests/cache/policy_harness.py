"""A cache that steps are played on, for the tests of policies."""

from typing import Any

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.step_graph import StepGraph

SPACE = Namespace("m", "r", "f", "l")
AGENTS = ("planner", "coder", "tester")


def prompt(number: int) -> bytes:
    """Three blocks and a token, unlike those of any other number."""
    return pack([number] * 49)


class Cache:
    """A cache that steps are played on, and that can be asked what it still holds."""

    def __init__(self, policy: str, gpu_blocks: int = 100, host_blocks: int = 0, **config: Any) -> None:
        self.clock = ManualClock()
        capacity = {Tier.GPU: gpu_blocks, Tier.HOST: host_blocks}
        self.cache = KVCache(capacity, CacheConfig(policy=policy, **config), NullTransferEngine(), self.clock)
        self.epoch = 0
        self.steps: dict[str, int] = {}

    def step(
        self, number: int, workflow: str, agent: str = "planner", graph: StepGraph | None = None, seconds: float = 0.0
    ) -> None:
        """A step begins a second from now, reads the prompt of that number, and takes `seconds`."""
        handle = self.begin(number, workflow, agent, graph)
        self.clock.advance(seconds)
        self.cache.close(handle)

    def begin(self, number: int, workflow: str, agent: str = "planner", graph: StepGraph | None = None) -> CacheHandle:
        self.clock.advance(1.0)
        step = self.steps[workflow] = self.steps.get(workflow, -1) + 1
        handle = self.cache.open(StepIdentity(SPACE, workflow, agent, step, 49, graph), prompt(number))
        assert handle is not None
        assert self.cache.grow(handle, 49)
        self.cache.commit(handle, prompt(number))
        return handle

    def forecast(self, workflow: str, **agents: float) -> None:
        self.forecast_path(workflow, agents)

    def forecast_path(self, workflow: str, *steps: dict[str, float]) -> None:
        self.epoch += 1
        assert self.cache.apply(Forecast(workflow, self.epoch, 0.0, tuple(StepForecast(agents, 1.0) for agents in steps)))

    def order(self) -> list[int]:
        """The numbers whose prompts leave, in order, as everything is evicted."""
        left, known = [], [n for n in range(20) if self.holds(n)]
        while known:
            slots = self.cache.tiers.take(self.cache.tiers.pools[0].free_slots + 3)
            assert slots is not None
            self.cache.tiers.give(slots)
            gone = [n for n in known if not self.holds(n)]
            left += gone
            known = [n for n in known if n not in gone]
        return left

    def holds(self, number: int) -> bool:
        return bool(self.cache.captured(SPACE, prompt(number)))

    def held(self, tier: Tier) -> set[int]:
        """The numbers whose prompts a tier would deliver."""
        return {number for number in range(20) if tier in self.cache.captured(SPACE, prompt(number))}
