"""The clairvoyant policy: cases whose best choice is known, and comparisons on generated workloads."""

import math

import pytest

from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.policies.oracle import FutureUses
from pbkv_cluster.simulator.workload.token_source import TokenSource
from tests.simulator.simulated import one_by_one, source


def found(tokens: TokenSource, blocks: int, policy: str) -> int:
    """Prompt tokens that the GPU tier delivered."""
    reference = simulate(tokens, Setup(blocks))
    return simulate(tokens, Setup(blocks, policy=policy), reference).meter.delivered.get(Tier.GPU, 0)


def test_the_next_use_is_that_of_the_first_step_that_has_not_begun() -> None:
    begun: set[str] = set()
    future = FutureUses([(2.0, "b", [b"x"]), (1.0, "a", [b"x", b"y"]), (3.0, "c", [b"x"])], begun)
    assert future.next_use(b"x") == 1.0
    begun.add("b")
    assert future.next_use(b"x") == 1.0
    begun.add("a")
    assert future.next_use(b"x") == 3.0
    assert future.next_use(b"y") == math.inf
    assert future.next_use(b"z") == math.inf


def test_keeps_what_is_used_again_rather_than_what_was_used_last() -> None:
    tokens = one_by_one("A", "B", "C", "A")
    assert found(tokens, 9, "lru") == 0
    assert found(tokens, 9, "oracle") == 64


def test_hits_in_a_loop_that_is_larger_than_the_cache() -> None:
    tokens = one_by_one(*"ABCABCABC")
    assert found(tokens, 9, "lru") == 0
    # Two of the three fit. From the fourth step on Belady keeps one of the two that are cached: every other step hits.
    assert found(tokens, 9, "oracle") == 3 * 64


def test_evicts_the_end_of_a_node_without_its_beginning() -> None:
    tokens = one_by_one("Y", "ST", "Z", "SU", "Y")
    assert found(tokens, 13, "lru") < found(tokens, 13, "oracle") == 2 * 64


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("blocks", [60, 90, 160])
def test_no_policy_hits_more_when_steps_run_one_by_one(seed: int, blocks: int) -> None:
    tokens = source(12, seed, concurrency=1)
    best = found(tokens, blocks, "oracle")
    for policy in ("lru", "retired-lru", "pbkv-paper"):
        assert found(tokens, blocks, policy) <= best


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_hits_more_when_workflows_run_side_by_side(seed: int) -> None:
    tokens = source(24, seed, concurrency=8)
    best = found(tokens, 120, "oracle")
    for policy in ("lru", "retired-lru", "pbkv-paper"):
        assert found(tokens, 120, policy) < best


def recomputed(tokens: TokenSource, gpu: int, host: int, policy: str) -> int:
    """Tokens that were computed again; the policy, guarded by nothing, is that of both tiers."""
    cache = CacheConfig(host_policy=policy, guard=False)
    reference = simulate(tokens, Setup(gpu, host, cache=CacheConfig(host_policy="lru")))
    return simulate(tokens, Setup(gpu, host, policy=policy, cache=cache), reference).recomputed_tokens


def test_what_is_dropped_is_used_last_of_all_that_both_tiers_hold() -> None:
    # Beside a running step there is room for one prompt on the GPU and for one in host memory: when D comes, one must go.
    tokens = one_by_one(*"ABCDACB")
    assert recomputed(tokens, 9, 4, "oracle") == 64, "B, which is used last"
    assert recomputed(tokens, 9, 4, "lru") == 2 * 64, "A, and for it B"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gpu", "host"), [(60, 10), (60, 30)])
def test_no_policy_recomputes_less_with_two_tiers(seed: int, gpu: int, host: int) -> None:
    tokens = source(12, seed, concurrency=1)
    least = recomputed(tokens, gpu, host, "oracle")
    for policy in ("lru", "retired-lru", "pbkv-paper"):
        assert recomputed(tokens, gpu, host, policy) >= least
    assert 0 < least < recomputed(tokens, gpu, host, "lru"), "the memory is neither too small nor too large to tell"


def test_does_not_exist_outside_a_simulation() -> None:
    with pytest.raises(FailedPrecondition, match="oracle"):
        make_policy("oracle", CacheConfig())
