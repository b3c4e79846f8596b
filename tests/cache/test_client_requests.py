"""What clients ask of a cache ahead of steps, in any history, and what becomes of it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from tests.cache.test_leases import HOST, TEXT, Rig


@pytest.mark.parametrize("policy", ["lru", "retired-lru", "pbkv-paper", "pbkv", "lfu", "continuum", "kvflow"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_a_workflow_is_prefetched_whatever_leaves_the_cache_for_it(policy: str, seed: int) -> None:
    chance = random.Random(seed)
    rig = Rig(policy, HOST + 2)
    for number in range(3):
        rig.run(f"own-{number}", workflow="w")
    others = [f"other-{number}" for number in range(5)]
    for name in others:
        rig.run(name)
    for name in others:
        if chance.random() < 0.8:
            rig.cache.retire(name)
    done = rig.cache.requests.prefetch_workflow("w", "", rig.clock.now())
    rig.cache.check_integrity()
    left = sum(rig.cached(f"own-{number}") for number in range(3)) * BLOCK_TOKENS
    assert done.tokens == sum(done.tiers.values()) == left
    assert done.resident <= left <= 3 * TEXT * BLOCK_TOKENS
