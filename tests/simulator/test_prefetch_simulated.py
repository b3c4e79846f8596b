"""Prefetch in simulated runs: it finds more on the GPU, and it does no harm when it cannot know better."""

from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from tests.simulator.simulated import source

SETUP = Setup(100, 400, "pbkv", cost=CostModel(copy_delay=0.1), engine=EngineConfig(max_running=3))
TOKENS = source(30, seed=0, concurrency=10, think_scale=0.5)


def run(mode: str, setup: Setup = SETUP) -> SimulationResult:
    return simulate(TOKENS, replace(setup, cache=CacheConfig.model_validate({"prefetch": mode})))


def test_more_is_found_on_the_gpu_with_prefetch() -> None:
    off, on = run("none"), run("queue")
    assert not off.prefetched.loaded
    assert on.prefetched.used > 0
    assert on.hit_gpu > off.hit_gpu
    assert on.hit_any >= 0.99 * off.hit_any


@pytest.mark.parametrize("disturbed", [{"noise": 1.0}, {"adversary": True}])
def test_random_and_wrong_forecasts_cost_no_more_than_a_percent(disturbed: dict[str, Any]) -> None:
    setup = replace(SETUP, **disturbed)
    off, on = run("none", setup), run("queue", setup)
    assert on.hit_gpu >= 0.99 * off.hit_gpu
    assert on.hit_any >= 0.99 * off.hit_any
