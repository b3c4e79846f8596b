"""Pressures, and the rows of a comparison."""

from dataclasses import replace

import pytest

from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.comparison import Comparison
from pbkv_cluster.simulator.evaluation.experiment import Plan, compare, train_state
from pbkv_cluster.simulator.evaluation.pressure import TOLERANCE, PressureScale
from pbkv_cluster.simulator.workload.workload import Mix
from tests.simulator.simulated import one_by_one, source, trace

SMALL = Mix(concurrency=6, think_scale=0.02)


def test_a_capacity_gives_lru_the_share_that_was_asked_for() -> None:
    tokens = source(40)
    scale = PressureScale(tokens, Setup(0))
    found = [scale.find(share) for share in (0.8, 0.9)]
    assert [capacity.share for capacity in found] == pytest.approx([0.8, 0.9], abs=2 * TOLERANCE)
    assert found[0].blocks < found[1].blocks
    again = simulate(tokens, Setup(found[0].blocks))
    assert again.hit_gpu / scale.infinite.hit_gpu == found[0].share


def test_a_pressure_below_the_least_capacity_gives_that() -> None:
    scale = PressureScale(source(12, concurrency=1), Setup(0))
    capacity = scale.find(0.01)
    assert capacity.blocks == scale.blocks_min
    assert capacity.share >= 0.01


def test_a_pressure_means_nothing_without_reuse() -> None:
    scale = PressureScale(one_by_one("A", "B"), Setup(0))
    with pytest.raises(InvalidArgument, match="pressure"):
        scale.find(0.5)
    with pytest.raises(InvalidArgument, match="pressure"):
        scale.find(1.0)


def test_rows_hold_ratios_to_lru_and_oracle() -> None:
    plan = Plan(("lru", "retired-lru", "oracle"), (0.8,), seeds=2, mix=SMALL)
    rows = list(compare([trace(24)], plan, Setup(0)))
    assert [(row.policy, row.seed) for row in rows] == [(name, seed) for seed in (0, 1) for name in plan.policies]
    for row in rows:
        assert row.hit_any == row.hit_gpu <= row.hit_infinite
        assert (row.guard_lru_share is None) == (row.policy in ("lru", "oracle")), "those two have no guard"
        assert sum(row.time_shares.values()) == pytest.approx(1.0)
        assert row.ttft_mean_s < row.step_mean_s < row.latency_mean_s
        assert row.over_lru is not None
        if row.policy == "lru":
            assert set(row.over_lru.values()) == {1.0}
            assert (row.gap_closed, row.gpu_gap_closed) == (0.0, 0.0)
        if row.policy == "oracle":
            assert (row.gap_closed, row.gpu_gap_closed) == (1.0, 1.0)
            assert row.bound_tokens == row.recomputed_tokens, "all memory is the GPU's"
            assert row.over_lru["recomputed_tokens"] is not None
            assert row.over_lru["recomputed_tokens"] < 1
    assert rows == list(compare([trace(24)], plan, Setup(0)))


def test_without_an_oracle_no_gap_is_known() -> None:
    plan = Plan(("retired-lru",), (0.8,), host_ratio=1.0, mix=SMALL)
    (row,) = compare([trace(12)], plan, Setup(0))
    assert row.gap_closed is None
    assert row.gpu_gap_closed is None
    assert row.over_lru is not None
    assert row.host_blocks == row.capacity_blocks
    assert row.hit_any > row.hit_gpu


def test_rows_of_another_host_ratio_tell_the_capacity() -> None:
    tokens, runs = source(24), list[int]()
    other = Comparison(tokens, Setup(0), 1.0).row("lru", 0.8)
    told = Comparison(tokens, Setup(0), 0.3, on_run=lambda: runs.append(1), sized=[other]).row("lru", 0.8)
    assert len(runs) == 1, "no search"
    assert told == Comparison(tokens, Setup(0), 0.3).row("lru", 0.8)
    assert told.host_blocks < other.host_blocks


def test_the_bound_is_that_of_the_total_memory() -> None:
    plan = Plan(("lru", "oracle", "retired-lru"), (0.8,), host_ratio=0.3, mix=SMALL)
    lru, oracle, other = compare([trace(24)], plan, Setup(0))
    assert lru.bound_tokens == oracle.bound_tokens == other.bound_tokens
    assert oracle.bound_tokens is not None
    assert oracle.bound_tokens <= oracle.recomputed_tokens < lru.recomputed_tokens
    assert oracle.bound_tokens < other.recomputed_tokens
    for row in (lru, oracle, other):
        gap = lru.recomputed_tokens - oracle.bound_tokens
        assert row.gap_closed == (lru.recomputed_tokens - row.recomputed_tokens) / gap


def test_lru_evicts_by_recency_from_every_tier() -> None:
    tokens = source(24)
    base = Comparison(tokens, Setup(0), 0.3).row("lru", 0.8)
    sized = Setup(base.capacity_blocks, base.host_blocks)
    own = simulate(tokens, replace(sized, cache=CacheConfig(host_policy="lru")))
    other = simulate(tokens, replace(sized, cache=CacheConfig(host_policy="retired-lru")))
    assert base.recomputed_tokens == own.recomputed_tokens != other.recomputed_tokens
    configured = Comparison(tokens, Setup(0, cache=CacheConfig(host_policy="retired-lru")), 0.3)
    assert configured.row("lru", 0.8) == base


def test_training_makes_the_first_forecasts_better() -> None:
    trained = train_state(Setup(0), [trace(30, seed=5)])
    assert trained.predictor_state is not None
    tokens = source(20)
    fresh = simulate(tokens, Setup(60, policy="pbkv-paper"))
    assert simulate(tokens, replace(trained, gpu_blocks=60, policy="pbkv-paper")).steps != fresh.steps


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"policies": ()}, "policies"),
        ({"policies": ("lru", "lru")}, "policies"),
        ({"policies": ("lru", "")}, "policies"),
        ({"pressures": ()}, "pressure"),
        ({"pressures": (1.2,)}, "pressure"),
        ({"seeds": 0}, "seeds"),
        ({"host_ratio": -1.0}, "host_ratio"),
        ({"host_ratio": float("inf")}, "host_ratio"),
    ],
)
def test_a_wrong_plan_is_refused(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        Plan(**{"policies": ("lru",), "pressures": (0.5,), **wrong})  # type: ignore[arg-type]
