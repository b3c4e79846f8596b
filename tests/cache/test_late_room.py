"""Slots that something late reads or writes: they are no room, wherever their blocks are."""

from collections.abc import Iterable, Sequence

import pytest

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from tests.cache.staging_rig import Peer, Rig
from tests.cache.test_leases import TEXT, space, text


class Away(Peer):
    """Another node has everything while it is there."""

    is_there = False

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        return super().tiers(keys) if self.is_there else []


def opened(rig: Rig, name: str, blocks: int = TEXT) -> CacheHandle | None:
    tokens = text(name, blocks)
    return rig.cache.open(StepIdentity(space(), f"later-{name}", "a", 1, count(tokens)), tokens)


@pytest.fixture
def rig() -> Rig:
    """Blocks that a client has prefetched from another node are late, noticed in a wait for another sequence's blocks."""
    peer = Away()
    rig = Rig(host=40, elsewhere=peer, compute_s=2.0)
    rig.run_and_end("abcdefg")
    peer.is_there = True
    assert rig.cache.requests.prefetch(space(), text("z", TEXT)).loaded == TEXT * BLOCK_TOKENS
    peer.is_there = False
    handle = opened(rig, "a")
    assert handle is not None
    assert handle.delivered
    rig.bus.is_slow = True
    rig.clock.advance(2.1)
    rig.cache.wait(handle, 0.005)
    return rig


def test_what_is_noticed_to_be_late_in_a_wait_has_left_the_tree_after_it(rig: Rig) -> None:
    assert rig.tiers("z") == {}
    assert rig.cache.tiers.decisions["fetch_late"] == TEXT


def test_requests_of_clients_get_no_slot_of_what_is_late(rig: Rig) -> None:
    for name in "bcd":
        before = rig.tiers(name).get(Tier.GPU, 0)
        room = rig.cache.tiers.room()
        done = rig.cache.requests.prefetch(space(), text(name, TEXT))
        assert done.loaded // BLOCK_TOKENS <= min(room, TEXT - before)
        rig.cache.check_integrity()


def test_slots_of_blocks_that_something_late_reads_are_no_room(rig: Rig) -> None:
    pool, tree = rig.cache.tiers.gpu.pool, rig.cache.tiers.room()
    resident = next(node for node in rig.cache.tree.walk() if node.held[0] and not node.refs and not node.children)
    pool.begin(resident.slots[0])
    pool.withhold(resident.slots[0])
    assert rig.cache.tiers.room() == tree - resident.held[0]
    assert rig.cache.tiers.take(tree) is None
    slots = rig.cache.tiers.take(tree - resident.held[0])
    assert slots is not None
    assert len(slots) == tree - resident.held[0]
