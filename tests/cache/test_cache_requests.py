"""What clients ask of a cache ahead of steps, in any history, and what becomes of it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from tests.cache import test_leases
from tests.cache.test_leases import HOST, TEXT, Bus, Rig, Sibling, space, text

POLICIES = ["lru", "retired-lru", "pbkv-paper", "pbkv", "lfu", "continuum", "kvflow"]


@pytest.mark.parametrize("policy", POLICIES)
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
    done = rig.cache.requests.prefetch_workflow("w", "")
    rig.cache.check_integrity()
    left = sum(rig.cached(f"own-{number}") for number in range(3)) * BLOCK_TOKENS
    assert done.tokens == sum(done.tiers.values()) == left
    assert done.resident <= left <= 3 * TEXT * BLOCK_TOKENS


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_client_has_had_fetched_is_not_the_next_to_leave(policy: str) -> None:
    rig = Rig(policy, elsewhere=Sibling())
    for name in ("a", "b", "c"):
        rig.run(name)
        rig.cache.retire(name)
    rig.clock.advance(3600.0)
    assert rig.cache.requests.prefetch(space(), text("wanted")).loaded == TEXT * BLOCK_TOKENS
    rig.run("other")  # the GPU is full then
    assert sum(rig.cached(name) for name in ("a", "b", "c")) < 3 * TEXT
    assert rig.cached("wanted") == TEXT


@pytest.mark.parametrize("policy", sorted({*POLICIES} - {"lfu", "pbkv"}))  # which go by all uses, of which each has had one
def test_what_a_client_has_had_loaded_is_not_the_next_to_leave(policy: str) -> None:
    rig = Rig(policy, 3 * HOST)
    for name in ("wanted", "a", "b", "c", "d", "e"):
        rig.run(name)
        rig.cache.retire(name)
    rig.clock.advance(3600.0)
    assert rig.cache.requests.prefetch(space(), text("wanted")).resident == TEXT * BLOCK_TOKENS
    rig.run("other")
    assert rig.cache.captured(space(), text("wanted")) == {Tier.GPU: TEXT * BLOCK_TOKENS}


def test_no_demotion_waits_for_a_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    comes_after: list[bool] = []  # whether each demotion comes after a fetch

    class Slow(Bus):
        """No fetch ends by itself."""

        def submit(self, transfer: Transfer) -> bool:
            if transfer.patience_s is None:
                comes_after.append(any(earlier.patience_s is not None for earlier in transfer.after))
            return super().submit(transfer)

        def completed(self) -> list[Transfer]:
            self.wait([each for each in self._open if each.patience_s is None])
            done, self._completed = self._completed, []
            return done

    monkeypatch.setattr(test_leases, "Bus", Slow)
    rig = Rig("retired-lru", HOST, elsewhere=Sibling())
    assert rig.cache.requests.prefetch(space(), text("wanted")).loaded == TEXT * BLOCK_TOKENS
    rig.press()
    assert rig.cached("wanted") == 0
    assert comes_after
    assert not any(comes_after)
