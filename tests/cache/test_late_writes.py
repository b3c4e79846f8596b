"""With write-through, blocks that were fetched are in the slower tiers once they have arrived, as computed ones are."""

from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import Nowhere
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from tests.cache.late_transfers import LateEngine
from tests.cache.test_cache_model import named
from tests.cache.test_failed_transfers import FailingDriver
from tests.cache.test_fetches import FetchingEngine, Others

SPACE = Namespace("m", "r", "f", "l")
ROOM = {Tier.GPU: 40, Tier.HOST: 10_000}


class Sibling(Nowhere):
    """Has the first blocks of everything in host memory."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self._blocks = blocks

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        return [Tier.SIBLING for _, _ in zip(range(self._blocks), keys, strict=False)]

    def is_near(self, key: bytes) -> bool:
        return True


class Slow(LateEngine):
    """Copies nothing, and no fetch ends before it is waited for or may end."""

    labelled = True
    may_end = False

    def completed(self) -> Sequence[Transfer]:
        self.wait([each for each in self._open if self.may_end or each.patience_s is None])
        done, self._completed = self._completed, []
        return done

    def _copy(self, transfer: Transfer) -> None:
        pass


def make(engine: LateEngine, fetched: int) -> KVCache:
    config = CacheConfig(policy="lru", write_through=True)
    return KVCache(ROOM, config, engine, ManualClock(), compute_seconds=lambda tokens: 9.0, elsewhere=Sibling(fetched))


def prompt(blocks: int, start: int = 0) -> bytes:
    return pack([*range(start, start + blocks * BLOCK_TOKENS), 1])


def in_host(cache: KVCache, tokens: bytes) -> list[bool]:
    residency = cache.tiers.residency()
    return [Tier.HOST in residency[key].tiers for key in block_keys(SPACE, tokens)]


def identity(tokens: bytes, workflow: str = "w") -> StepIdentity:
    return StepIdentity(SPACE, workflow, "a", 0, count(tokens))


def test_a_step_that_has_fetched_leaves_its_whole_path_to_a_restarted_worker() -> None:
    """Also what a sibling has in host memory: without it, what follows could not be matched."""
    cache, tokens = make(Slow(0), fetched=6), prompt(8)
    handle = cache.open(identity(tokens), tokens, ahead=0)
    assert handle is not None
    assert handle.fetched == {Tier.SIBLING: 6 * BLOCK_TOKENS}
    assert not any(in_host(cache, prompt(6))), "nothing has come yet"
    cache.wait(handle)
    assert all(in_host(cache, prompt(6)))
    assert cache.grow(handle, count(tokens))
    cache.commit(handle, tokens)
    assert all(in_host(cache, tokens))
    cache.close(handle)
    cache.check_integrity()


def test_what_is_prefetched_from_another_worker_is_copied_when_it_has_come() -> None:
    cache, tokens = make(engine := Slow(0), fetched=6), prompt(6)
    assert cache.requests.prefetch(SPACE, tokens).loaded == 6 * BLOCK_TOKENS
    cache.poll()
    assert cache.late_writes
    assert not any(in_host(cache, tokens))
    engine.may_end = True
    cache.poll()
    assert not cache.late_writes
    assert all(in_host(cache, tokens))
    cache.check_integrity()


def test_a_fetch_whose_step_was_cancelled_and_whose_node_was_split_is_copied_too() -> None:
    cache, tokens = make(engine := Slow(0), fetched=6), prompt(6)
    handle = cache.open(identity(tokens), tokens, ahead=0)
    other = prompt(2) + prompt(2, start=1000)
    second = cache.open(identity(other, "other"), other)
    assert handle is not None
    assert second is not None
    cache.close(handle)
    cache.close(second)
    engine.may_end = True
    cache.poll()
    assert all(in_host(cache, prompt(5)))
    cache.check_integrity()


@pytest.mark.parametrize("capacity", [ROOM, {**ROOM, Tier.DISK: 10_000}], ids=named)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_where_there_is_room_every_block_reaches_every_tier(capacity: Mapping[Tier, int], seed: int) -> None:
    driver = FailingDriver(seed, capacity, "lru", False, FetchingEngine(seed), True, Others())
    for _ in range(150):
        driver.step()
    driver.recover()
    while driver.running:
        driver.finish()
    while driver.cache.late_writes or len(driver.cache.tiers.in_flight):
        driver.clock.advance(1.0)
        driver.cache.poll()
    slower = set(capacity) - {Tier.GPU}
    assert all(slower <= residency.tiers for residency in driver.cache.tiers.residency().values())
    assert not driver.cache.late_writes
    driver.check_announcements()
    driver.end()
