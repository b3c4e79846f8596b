"""Random histories in which blocks are fetched from other workers: they arrive late, in any order, or not at all."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.prefetch.shelter import LeavingPath
from pbkv_cluster.cache.tiers.elsewhere import Nowhere
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.blocks import block_keys, chain_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from tests.cache.late_transfers import GARBAGE, LateEngine
from tests.cache.test_cache_model import CAPACITIES, SPACES, Driver, named
from tests.cache.test_failed_transfers import FailingDriver


class Others(Nowhere):
    """Other workers hold about half of all blocks, of siblings and of other nodes."""

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        found = []
        for key in keys:
            if key[0] % 4 == 0:
                break
            found.append(Tier.REMOTE if key[0] % 4 == 1 else Tier.SIBLING)
        return found

    def is_near(self, key: bytes) -> bool:
        return key[0] % 2 == 0


class FetchingEngine(LateEngine):
    """Some fetches lose blocks, and some take longer than the cache waits."""

    labelled = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._fate = random.Random(seed)

    def completed(self) -> Sequence[Transfer]:
        if self._fate.random() < 0.15:
            self.catch_up()
        return super().completed()

    def catch_up(self) -> None:
        super().wait(tuple(self._open))

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        in_time = [each for each in transfers if timeout_s is None or not each.may_be_late or self._fate.random() < 0.7]
        super().wait(in_time, timeout_s)

    def _copy(self, transfer: Transfer) -> None:
        lost = {slot for earlier in transfer.after for slot in earlier.failed}
        if transfer.patience_s is None:
            sources = zip(transfer.source_slots, transfer.target_slots, strict=True)
            found = {target: self.content[transfer.source, source] for source, target in sources if source not in lost}
        else:
            labels = zip(transfer.target_slots, transfer.labels, strict=True)
            found = {slot: label.key for slot, label in labels if self._fate.random() < 0.9}
        assert GARBAGE not in found.values(), "a source was reused before it was read"
        transfer.failed = new_slots(slot for slot in transfer.target_slots if slot not in found)
        self.content.update(((transfer.target, slot), found.get(slot, GARBAGE)) for slot in transfer.target_slots)


class SharingDriver(FailingDriver):
    """Shelters what siblings want to keep, and looks for what is about to leave."""

    def step(self) -> None:
        if self.random.random() < 0.1:
            self.shelter()
        super().step()

    def shelter(self) -> None:
        space, tokens = self.random.choice(SPACES), self.prompt()
        tokens = tokens[: len(tokens) // BLOCK_BYTES * BLOCK_BYTES]
        free = self.cache.tiers[Tier.HOST].pool.free_slots
        before = self.residency.copy()
        taken = self.cache.shelter.take_in([LeavingPath(space.digest(), tokens, 0)]).blocks
        assert taken <= free
        assert self.residency.items() >= before.items(), "something had to make room"
        if taken:
            self.seen.update(block_keys(space, tokens))
        for path in self.cache.shelter.leaving():
            keys = chain_keys(path.digest, path.tokens)
            assert Tier.HOST in self.residency[keys[-1]].tiers, "what is named lies in no host memory"
            assert all(Tier.HOST in self.residency[key].tiers for key in keys[path.first :])


def drive(seed: int, capacity: Mapping[Tier, int], policy: str, write_through: bool = False, steps: int = 150) -> Driver:
    driver = SharingDriver(seed, capacity, policy, True, FetchingEngine(seed), write_through, Others())
    for _ in range(steps):
        driver.step()
    return driver


@pytest.mark.parametrize("capacity", [CAPACITIES[0], CAPACITIES[1], CAPACITIES[2]], ids=named)
@pytest.mark.parametrize(("policy", "write_through"), [("lru", False), ("lru", True), ("pbkv-paper", False)])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_only_what_has_arrived_is_delivered(policy: str, write_through: bool, capacity: Mapping[Tier, int], seed: int) -> None:
    driver = drive(seed, capacity, policy, write_through)
    assert isinstance(driver, FailingDriver)
    driver.recover()
    driver.end()


def test_histories_have_fetches_of_every_end() -> None:
    decisions = sum((drive(seed, CAPACITIES[1], "lru", steps=300).cache.tiers.decisions for seed in (1, 2)), Counter[str]())
    assert decisions["fetch"] > 50
    assert decisions["fetch_failed"] > 5
    assert decisions["fetch_late"] > 5
    assert decisions["second_copy_skipped"] > 5
    assert decisions["shelter"] > 5
