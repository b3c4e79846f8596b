"""Slots that something late reads or writes: they are no room, wherever their blocks are."""

from collections.abc import Iterable, Sequence

import pytest

from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from tests.cache.staging_rig import BLOCK_S, Peer, Rig
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


def test_an_idle_worker_waits_until_all_slots_are_room_again() -> None:
    """Also for loads from host memory to which a late disk was to bring the blocks, when the disk has ended."""
    rig = Rig(disk=40, compute_s=2.0)
    rig.run_and_end("abcdefg")
    rig.ahead("a", seconds=2.5 * BLOCK_S)
    rig.settle()
    assert rig.ahead("a")
    handle = opened(rig, "a")
    assert handle is not None
    reads = [each for transfer in handle.waits_for for each in (transfer, *transfer.after) if each.source is Tier.DISK]
    assert any(transfer.source is Tier.HOST for transfer in handle.waits_for)
    rig.clock.advance(10.0)
    rig.cache.poll()
    rig.cache.close(handle)
    for each in reads:
        rig.bus.end(each)
    rig.cache.poll()
    in_flight, pool = rig.cache.tiers.in_flight, rig.cache.tiers.gpu.pool
    assert not in_flight.is_late(Tier.DISK)
    assert rig.cache.tiers.room() < pool.capacity
    assert in_flight.wait_for_late(0.005)
    assert rig.cache.tiers.room() == pool.capacity
    assert not in_flight.wait_for_late(0.005)
