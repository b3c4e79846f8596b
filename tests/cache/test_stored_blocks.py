"""Blocks of an earlier process whose beginning is lost: they enter the tree when that has been computed again."""

import gc
from collections.abc import Sequence

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import BlockLabel, Namespace, StoredBlock, chain_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier

SPACE = Namespace("m", "r", "f", "l")
HOST = 8


def text(blocks: Sequence[int]) -> bytes:
    """Each block is a number, repeated. One more token is left to be computed."""
    return pack([number for number in blocks for _ in range(BLOCK_TOKENS)] + [0])


def label(*path: int) -> BlockLabel:
    """Of the last block of a path."""
    parent = SPACE.digest()
    for number in path[:-1]:
        (parent,) = chain_keys(parent, pack([number] * BLOCK_TOKENS))
    tokens = pack([path[-1]] * BLOCK_TOKENS)
    return BlockLabel(SPACE.digest(), parent, chain_keys(parent, tokens)[0], tokens)


class Rig:
    """A cache of 8 blocks on the GPU and in the host, of which some have outlived a process."""

    def __init__(self, *stored: Sequence[int]) -> None:
        self.cache = KVCache({Tier.GPU: 8, Tier.HOST: HOST}, CacheConfig(policy="lru"), NullTransferEngine(), ManualClock())
        blocks = [StoredBlock(slot, label(*path), 0.0) for slot, path in enumerate(stored)]
        self.found = self.cache.restore({Tier.HOST: blocks})
        self.cache.check_integrity()

    def run(self, *blocks: int) -> CacheHandle:
        """Runs a step that computes all of a text at once."""
        tokens = text(blocks)
        handle = self.cache.open(StepIdentity(SPACE, "w", "a", 0, count(tokens)), tokens)
        assert handle is not None
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        self.cache.check_integrity()
        self.cache.close(handle)
        self.cache.check_integrity()
        return handle

    def holds(self, *blocks: int) -> dict[Tier, int]:
        return {tier: tokens // BLOCK_TOKENS for tier, tokens in self.cache.captured(SPACE, text(blocks)).items()}


def remembered() -> int:
    """Stored blocks of which anything still knows."""
    gc.collect()
    return sum(type(each) is StoredBlock for each in gc.get_objects())


def test_what_follows_a_lost_block_can_be_matched_when_that_has_been_computed() -> None:
    rig = Rig((1, 2), (1, 2, 3), (1, 2, 4), (1, 5))
    assert rig.found == 0
    assert rig.cache.used_blocks(Tier.HOST) == 0
    assert rig.holds(1, 2, 3) == {}
    rig.run(1)
    assert rig.holds(1, 2, 3) == {Tier.GPU: 1, Tier.HOST: 2}
    assert rig.holds(1, 2, 4) == {Tier.GPU: 1, Tier.HOST: 2}
    assert rig.holds(1, 5) == {Tier.GPU: 1, Tier.HOST: 1}
    assert rig.cache.tiers.decisions["restore"] == rig.cache.used_blocks(Tier.HOST) == 4
    assert rig.run(1, 2, 3).delivered == {Tier.GPU: BLOCK_TOKENS, Tier.HOST: 2 * BLOCK_TOKENS}


def test_a_sequence_that_could_go_on_with_them_is_told() -> None:
    rig = Rig((1, 2), (1, 3))
    tokens = text((1, 2))
    handle = rig.cache.open(StepIdentity(SPACE, "w", "a", 0, count(tokens)), tokens)
    assert handle is not None
    assert rig.cache.grow(handle, count(tokens))
    rig.cache.commit(handle, tokens, BLOCK_TOKENS)
    assert rig.cache.continued() == [handle]
    rig.cache.close(handle)
    assert rig.cache.continued() == []
    assert not rig.run(1, 4).continued


def test_what_was_computed_too_is_not_kept_twice_and_what_branches_off_is_found() -> None:
    rig = Rig((1, 2), (1, 5), (1, 2, 6), (1, 2, 3, 4), (7, 8))
    rig.run(1, 2, 3)
    assert rig.holds(1, 2, 3, 4) == {Tier.GPU: 3, Tier.HOST: 1}
    assert rig.holds(1, 2, 6) == {Tier.GPU: 2, Tier.HOST: 1}
    assert rig.holds(1, 5) == {Tier.GPU: 1, Tier.HOST: 1}
    assert rig.cache.used_blocks(Tier.HOST) == 3
    rig.run(7)
    assert rig.holds(7, 8) == {Tier.GPU: 1, Tier.HOST: 1}


def test_their_slots_are_free_and_taken_last() -> None:
    rig = Rig((1, 2), (1, 2, 3), (1, 2, 3, 4))
    pool = rig.cache.tiers[Tier.HOST].pool
    assert pool.room == HOST
    pool.release(pool.take(HOST - 3))
    rig.run(1)
    assert rig.holds(1, 2, 3, 4) == {Tier.GPU: 1, Tier.HOST: 3}

    rig = Rig((1, 2), (1, 2, 3), (1, 2, 3, 4))
    pool = rig.cache.tiers[Tier.HOST].pool
    taken = pool.take(HOST - 2)
    gone = next(slot for slot in range(3) if slot in taken)
    pool.release(taken)
    rig.run(1)
    assert rig.holds(1, 2, 3, 4) == {Tier.GPU: 1} | ({Tier.HOST: gone} if gone else {})
    rig.run(1, 2, 3)
    assert rig.holds(1, 2, 3, 4).get(Tier.HOST, 0) == int(gone != 2), "what is behind a gap is found when that is filled"


def test_nothing_is_remembered_of_what_has_been_found_or_never_will_be() -> None:
    found = Rig((1, 2), (1, 3))
    assert remembered() == 2
    found.run(1)
    gone = Rig((1, 2))
    pool = gone.cache.tiers[Tier.HOST].pool
    pool.release(pool.take(HOST))
    gone.run(1)
    assert remembered() == 0


def test_an_operator_who_clears_the_cache_clears_them() -> None:
    rig = Rig((1, 2))
    rig.cache.clear()
    rig.run(1)
    assert rig.holds(1, 2) == {Tier.GPU: 1}
