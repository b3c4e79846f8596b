"""A disk in simulated runs: what it takes, what it brings, and that staging from it does no harm."""

from dataclasses import replace

import pytest

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.runner import BUFFER_BYTES, SimulatedTransferEngine
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from tests.simulator.simulated import source

COST = CostModel(host_bytes_per_s=4e9, block_bytes=1 << 20, copy_delay=0.0, disk_bytes_per_s=1e9, disk_latency_s=1e-3)
BLOCK_S, READ_S = (1 << 20) / 4e9, 1e-3 + (1 << 20) / 1e9
BUFFER = BUFFER_BYTES >> 20  # blocks

DISK = CostModel(copy_delay=0.1, disk_bytes_per_s=6e9)
SETUP = Setup(200, 60, "pbkv", cost=DISK, engine=EngineConfig(max_running=3))


def transfer(source: Tier, target: Tier, blocks: int) -> Transfer:
    return Transfer(source, new_slots(range(blocks)), target, new_slots(range(blocks)))


def end_of(engine: SimulatedTransferEngine, clock: ManualClock, made: Transfer) -> float:
    """When a transfer is done that has been submitted now."""
    now = clock.now()
    return now if engine.submit(made) else engine.completed_at(made)


def test_a_block_is_read_from_the_disk_and_copied_on_where_the_gpu_wants_it() -> None:
    clock = ManualClock()
    engine = SimulatedTransferEngine(COST, clock)
    assert engine.seconds(Tier.DISK, Tier.HOST, 4) == pytest.approx(4 * READ_S)
    assert end_of(engine, clock, transfer(Tier.DISK, Tier.HOST, 4)) == pytest.approx(4 * READ_S)
    assert engine.seconds(Tier.DISK, Tier.GPU, 0) == pytest.approx(4 * READ_S), "one is read at a time"
    assert end_of(engine, clock, transfer(Tier.DISK, Tier.GPU, 2)) == pytest.approx(6 * READ_S + 2 * BLOCK_S)
    assert end_of(engine, clock, transfer(Tier.HOST, Tier.GPU, 1)) == pytest.approx(BLOCK_S), "it has a way of its own"


def test_the_disk_is_written_behind() -> None:
    clock = ManualClock()
    engine = SimulatedTransferEngine(COST, clock)
    assert end_of(engine, clock, transfer(Tier.HOST, Tier.DISK, BUFFER)) == 0.0
    assert engine.seconds(Tier.HOST, Tier.DISK, 2) == pytest.approx(2 * READ_S)
    assert end_of(engine, clock, transfer(Tier.HOST, Tier.DISK, 2)) == pytest.approx(2 * READ_S)
    clock.advance((BUFFER + 2) * READ_S)
    assert engine.seconds(Tier.HOST, Tier.DISK, BUFFER) == 0.0


def test_what_only_touches_the_disk_delays_no_computing() -> None:
    clock = ManualClock()
    engine = SimulatedTransferEngine(replace(COST, copy_delay=0.5), clock)
    for source_tier, target in ((Tier.HOST, Tier.DISK), (Tier.DISK, Tier.HOST)):
        engine.submit(transfer(source_tier, target, 4))
    assert clock.now() == 0.0
    engine.submit(transfer(Tier.DISK, Tier.GPU, 4))
    assert clock.now() == pytest.approx(0.5 * 4 * BLOCK_S)


def run(setup: Setup, stage: bool, seed: int = 0) -> SimulationResult:
    tokens = source(40, seed=seed, concurrency=30, think_scale=4.0)
    return simulate(tokens, replace(setup, seed=seed, cache=CacheConfig(stage=stage)))


def test_a_disk_delivers_what_was_computed_again_without_it() -> None:
    without, disk = run(SETUP, False), run(replace(SETUP, disk_blocks=1500), False)
    assert disk.meter.delivered[Tier.DISK] > 0
    assert disk.recomputed_tokens < without.recomputed_tokens
    assert not disk.staged.loaded


@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["forecasts as made", "random forecasts"])
def test_staging_brings_blocks_to_host_memory_and_costs_hardly_any_hits(noise: float) -> None:
    """A single run is no measure: what differs at first makes others differ after it. `benchmarks tools` measures more."""
    setup = replace(SETUP, disk_blocks=1500, noise=noise)
    off, on = ([run(setup, stage, seed) for seed in range(2)] for stage in (False, True))
    assert all(each.staged.used > 0 for each in on)
    assert sum(each.hit_any for each in on) >= 0.98 * sum(each.hit_any for each in off)
