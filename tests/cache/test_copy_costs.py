"""Copies that are slower than to compute: what is made of them, and what is tried all the same."""

from collections.abc import Iterable, Sequence

import pytest

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere, Nowhere
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from tests.cache.test_leases import space, text

BLOCKS = 8
COMPUTE_S = 1.0  # for a block


class Lanes(NullTransferEngine):
    """Every block takes as long, and so many are worth a trial."""

    def __init__(self, block_s: float, trial: int = 0) -> None:
        self.block_s = block_s
        self.trial = trial

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return blocks * self.block_s

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        return self.trial


class Elsewhere8(Nowhere):
    """Half of a text lies with a sibling, and the rest with another node."""

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        return [Tier.SIBLING if at < BLOCKS // 2 else Tier.REMOTE for at, _ in enumerate(keys)]


class Rig:
    def __init__(self, lanes: Lanes, elsewhere: Elsewhere = NOWHERE, guard: bool = False) -> None:
        self.lanes = lanes
        self.cache = make_cache(
            {Tier.GPU: BLOCKS + 4, Tier.HOST: 4 * BLOCKS},
            CacheConfig(policy="pbkv" if guard else "lru", guard=guard),
            lanes,
            ManualClock(),
            compute_seconds=lambda tokens: COMPUTE_S * tokens / BLOCK_TOKENS,
            elsewhere=elsewhere,
        )

    def run(self, name: str, ahead: int | None = None) -> dict[Tier, int]:
        """Runs a step. Returns the blocks that each tier delivered."""
        tokens = text(name, BLOCKS)
        handle = self.cache.open(StepIdentity(space(), name, "a", 1, count(tokens)), tokens, ahead=ahead)
        assert handle is not None
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        self.cache.close(handle)
        self.cache.check_integrity()
        return {tier: tokens // BLOCK_TOKENS for tier, tokens in handle.delivered.items()}

    def in_host(self) -> "Rig":
        """Runs two steps, of which the second costs the first its place on the GPU."""
        block_s, self.lanes.block_s = self.lanes.block_s, 0.0
        for name in "ab":
            self.run(name)
        self.lanes.block_s = block_s
        return self


@pytest.mark.parametrize(("trial", "loaded"), [(0, 0), (1, 1), (3, 2), (BLOCKS, BLOCKS)])
def test_of_what_is_slow_to_load_no_more_is_loaded_than_is_worth_a_trial(trial: int, loaded: int) -> None:
    rig = Rig(Lanes(2 * COMPUTE_S, trial)).in_host()
    on_gpu = rig.cache.captured(space(), text("a", BLOCKS)).get(Tier.GPU, 0) // BLOCK_TOKENS
    slow = BLOCKS - on_gpu
    loaded = min(loaded, slow)
    assert rig.run("a").get(Tier.HOST, 0) == loaded
    assert rig.cache.tiers.decisions["load_skipped_slower"] == slow - loaded


@pytest.mark.parametrize(("trial", "fetched"), [(0, {}), (3, {Tier.SIBLING: 2}), (4, {Tier.SIBLING: 4, Tier.REMOTE: 4})])
def test_of_what_is_slow_to_fetch_no_more_is_fetched_than_is_worth_a_trial(trial: int, fetched: dict[Tier, int]) -> None:
    rig = Rig(Lanes(9 * COMPUTE_S, trial), Elsewhere8())
    assert rig.run("a", ahead=0) == fetched
    assert rig.cache.tiers.decisions["fetch_skipped_slower"] == BLOCKS - sum(fetched.values())


@pytest.mark.parametrize("trial", [0, 1, BLOCKS])
def test_nothing_is_kept_for_a_trial(trial: int) -> None:
    rig = Rig(Lanes(2 * COMPUTE_S, trial))
    for name in "ab":
        rig.run(name)
    assert rig.cache.used_blocks(Tier.HOST) == 0


@pytest.mark.parametrize("trial", [0, 1, 3, BLOCKS])
def test_a_client_s_prefetch_loads_no_more_of_what_is_slow_than_is_worth_a_trial(trial: int) -> None:
    """However many nodes the blocks are in."""
    rig = Rig(Lanes(2 * COMPUTE_S)).in_host()
    short = text("a", BLOCKS)[: 2 * BLOCK_BYTES] + text("c", 1)
    handle = rig.cache.open(StepIdentity(space(), "c", "a", 1, count(short)), short)  # splits the path after two blocks
    assert handle is not None
    rig.cache.close(handle)
    on_gpu = rig.cache.captured(space(), text("a", BLOCKS)).get(Tier.GPU, 0)
    for name in "abc":
        rig.cache.retire(name)
    rig.lanes.trial = trial
    done = rig.cache.requests.prefetch(space(), text("a", BLOCKS))
    missing = BLOCKS * BLOCK_TOKENS - on_gpu
    assert done.loaded == min(trial * BLOCK_TOKENS, missing)
    assert rig.cache.tiers.decisions["prefetch_skipped_slower"] == (missing - done.loaded) // BLOCK_TOKENS
    rig.cache.check_integrity()


def test_a_load_that_the_queue_hides_is_made_and_the_guard_does_the_same_for_lru() -> None:
    for ahead, loaded in ((0, 0), (2 * BLOCKS * BLOCK_TOKENS, 1)):
        rig = Rig(Lanes(2 * COMPUTE_S), guard=True).in_host()
        rig.run("a", ahead)
        stat = rig.cache.guard()
        assert stat is not None
        slow = stat.hits.tokens // BLOCK_TOKENS - stat.hits.gpu_tokens // BLOCK_TOKENS
        assert (slow > 0) == loaded
        assert (stat.lru_hits.tokens, stat.lru_hits.gpu_tokens) == (stat.hits.tokens, stat.hits.gpu_tokens)


@pytest.mark.parametrize(("block_s", "pays"), [(COMPUTE_S, True), (1.01 * COMPUTE_S, False)])
def test_a_client_s_prefetch_loads_only_what_is_faster_than_to_compute(block_s: float, pays: bool) -> None:
    rig = Rig(Lanes(block_s)).in_host()
    on_gpu = rig.cache.captured(space(), text("a", BLOCKS)).get(Tier.GPU, 0)
    for name in "ab":
        rig.cache.retire(name)
    done = rig.cache.requests.prefetch(space(), text("a", BLOCKS))
    missing = BLOCKS * BLOCK_TOKENS - on_gpu
    assert done.loaded == (missing if pays else 0)
    assert done.resident == on_gpu + done.loaded
    assert rig.cache.tiers.decisions["prefetch_skipped_slower"] == (missing - done.loaded) // BLOCK_TOKENS
    rig.cache.check_integrity()
