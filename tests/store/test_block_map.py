"""The map of blocks: what it says of a sequence, and its bound."""

import random
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_map import BYTES_A_BLOCK, BlockMap, Match, WorkerKey
from tests.store.cluster_index.helpers import NAMESPACE

KEYS = block_keys(NAMESPACE, random.Random(5).randbytes(40 * BLOCK_BYTES))
SOME = KEYS[:8]
GPU = Residency(frozenset({Tier.GPU})).pack()
HOST = Residency(frozenset({Tier.HOST}), 7).pack()
W0, W1 = ("worker-0", "one"), ("worker-1", "one")
Held = tuple[str, list[Residency]]  # node, and where the first blocks of the sequence lie


def lies(*tiers: Tier, slot: int = -1) -> Residency:
    return Residency(frozenset(tiers), slot)


@st.composite
def holders(draw: st.DrawFn) -> Held:
    """A worker: its GPU holds a prefix, its memory one that is at least as long, and its disk may hold more."""
    disk = draw(st.integers(0, len(SOME)))
    memory = draw(st.integers(0, disk))
    gpu = draw(st.integers(0, memory))
    on_gpu = st.sampled_from([lies(Tier.GPU), lies(Tier.GPU, Tier.HOST, slot=3), lies(Tier.GPU, Tier.DISK, slot=3)])
    in_host = st.sampled_from([lies(Tier.HOST), lies(Tier.HOST, slot=3)])
    places = [on_gpu] * gpu + [in_host] * (memory - gpu) + [st.just(lies(Tier.DISK, slot=3))] * (disk - memory)
    return draw(st.sampled_from("abc")), [draw(each) for each in places]


def lets_read(held: list[Residency], block: int) -> bool:
    return Tier.HOST in held[block].tiers and held[block].slot >= 0


def slow_match(fleet: Mapping[WorkerKey, Held], worker: WorkerKey) -> Match:
    node, held = fleet[worker]
    in_memory = {each: sum(lie.tiers != {Tier.DISK} for lie in theirs) for each, (_, theirs) in fleet.items()}
    after: dict[bool, int] = {True: 0, False: 0}  # blocks of siblings, and of other nodes
    for other, (where, theirs) in fleet.items():
        if in_memory[other] > len(held) and lets_read(theirs, len(held)):
            after[where == node] = max(after[where == node], in_memory[other] - len(held))
    gpu = sum(Tier.GPU in each.tiers for each in held)
    return Match(gpu, len(held), len(held) - in_memory[worker], after[True], after[False])


@given(st.lists(holders(), max_size=8))
def test_a_match_is_what_each_worker_holds_and_the_longest_runs_that_it_could_read(fleet: list[Held]) -> None:
    workers = {(f"worker-{number}", "one"): held for number, held in enumerate(fleet)}
    blocks = BlockMap()
    for worker, (node, held) in workers.items():
        blocks.replace(worker, node, [(key, each.pack()) for key, each in zip(SOME, held, strict=False)])
    assert blocks.match(SOME, list(workers)) == [slow_match(workers, worker) for worker in workers]


def test_what_others_hold_is_counted_where_it_can_be_read() -> None:
    blocks, remote, on_disk = BlockMap(), ("worker-2", "one"), Residency(frozenset({Tier.DISK}), 7).pack()
    blocks.replace(W0, "a", [(key, GPU) for key in KEYS[:4]])
    blocks.replace(W1, "a", [(key, GPU) for key in KEYS[:6]] + [(key, HOST) for key in KEYS[6:20]])
    blocks.replace(remote, "b", [(key, HOST) for key in KEYS])
    assert blocks.match(KEYS, [W0]) == [Match(4, 4, 0, 0, 36)], "the sibling's next block is on its GPU"
    blocks.change(W0, [(key, GPU) for key in KEYS[4:8]])
    assert blocks.match(KEYS, [W0, W1, remote]) == [Match(8, 8, 0, 12, 32), Match(6, 20, 0, 0, 20), Match(0, 40)]
    assert blocks.match(KEYS[:10], [W0]) == [Match(8, 8, 0, 2, 2)]
    for worker in (W1, remote):
        blocks.change(worker, [(key, on_disk) for key in KEYS[15:40] if key in blocks.blocks(worker)])
    assert blocks.match(KEYS, [W0, W1]) == [Match(8, 8, 0, 7, 7), Match(6, 20, 5)], "nobody reads the disk of another"
    blocks.change(remote, [(KEYS[8], Residency(frozenset({Tier.GPU, Tier.DISK}), 7).pack())])
    assert blocks.match(KEYS, [W0]) == [Match(8, 8, 0, 7, 0)]
    blocks.remove(remote)
    assert blocks.match(KEYS, [W0, remote]) == [Match(8, 8, 0, 7), Match(0, 0)]


def test_what_is_on_its_way_to_host_memory_is_matched_there_and_read_by_nobody() -> None:
    blocks, on_its_way = BlockMap(), Residency(frozenset({Tier.HOST})).pack()
    blocks.replace(W0, "a", [])
    blocks.replace(W1, "a", [(key, on_its_way) for key in KEYS[:4]])
    assert blocks.match(KEYS, [W0, W1]) == [Match(0, 0), Match(0, 4)]
    assert list(blocks.places(KEYS[0])) == []
    blocks.change(W1, [(KEYS[0], HOST)])
    assert blocks.match(KEYS[:1], [W0]) == [Match(0, 0, 0, 1)]
    assert [place.region for place in blocks.places(KEYS[0])] == [W1[0]]


def test_a_map_is_bounded_in_bytes() -> None:
    blocks = BlockMap(max_bytes=10 * BYTES_A_BLOCK)
    blocks.replace(W0, "a", [(key, GPU) for key in KEYS])
    assert (len(blocks), blocks.left_out) == (10, 30)
    blocks.change(W0, [(KEYS[0], 0), (KEYS[20], HOST), (KEYS[1], HOST), (KEYS[21], HOST)])
    assert (len(blocks), blocks.left_out) == (10, 31)
    assert blocks.blocks(W0)[KEYS[1]] == blocks.blocks(W0)[KEYS[20]] == HOST
