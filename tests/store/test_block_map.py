"""The map of blocks: what it says of a sequence, against a slow version of the question."""

import random
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_map import BlockMap, Match, WorkerKey
from tests.store.cluster_index.helpers import NAMESPACE

KEYS = block_keys(NAMESPACE, random.Random(5).randbytes(8 * BLOCK_BYTES))
Held = tuple[str, list[Residency]]  # node, and where the first blocks of the sequence lie


def lies(*tiers: Tier, slot: int = -1) -> Residency:
    return Residency(frozenset(tiers), slot)


@st.composite
def holders(draw: st.DrawFn) -> Held:
    """A worker: its GPU holds a prefix, its memory one that is at least as long, and its disk may hold more."""
    disk = draw(st.integers(0, len(KEYS)))
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
        blocks.replace(worker, node, [(key, each.pack()) for key, each in zip(KEYS, held, strict=False)])
    assert blocks.match(KEYS, list(workers)) == [slow_match(workers, worker) for worker in workers]
