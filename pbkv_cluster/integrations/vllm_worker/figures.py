"""The worker's metrics, as far as vLLM tells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.integrations.vllm_worker.engine.contract import EngineContract
from pbkv_cluster.integrations.vllm_worker.held_blocks import HeldBlocks
from pbkv_cluster.integrations.vllm_worker.hints import ForecastFeed, HintBook
from pbkv_cluster.integrations.vllm_worker.steps import StepRunner


@dataclass(frozen=True, slots=True)
class VllmFigures:
    """Reads what the parts of a worker count."""

    steps: StepRunner
    engine: EngineContract
    held: HeldBlocks
    hints: HintBook
    feed: ForecastFeed | None
    problems: Callable[[], Sequence[str]]
    clock: Clock

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        shape = self.engine.shape
        figures.put(names.ENGINE_BATCHES, self.engine.load.batches)
        figures.put(names.RUNNING_STEPS, self.steps.running)
        figures.put(names.WAITING_STEPS, self.steps.waiting)
        figures.put(names.PREFILL_RATE, self.steps.prefill_rate.tokens_per_second)
        figures.put(names.PROBLEMS, len(self.problems()))
        if shape.block_bytes:
            used = self.held.count(Tier.GPU) * BLOCK_TOKENS // shape.block_tokens
            figures.put(names.TIER_CAPACITY_BYTES, shape.gpu_blocks * shape.block_bytes, Tier.GPU.value)
            figures.put(names.TIER_USED_BYTES, used * shape.block_bytes, Tier.GPU.value)
        if self.feed is not None:
            figures.put(names.PREDICTOR_REACHABLE, self.feed.is_connected)
            figures.put(names.FORECASTS_APPLIED, self.hints.received)
            if self.hints.made_at:
                figures.put(names.FORECAST_AGE_SECONDS, max(self.clock.wall() - self.hints.made_at, 0.0))
