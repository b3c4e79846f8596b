"""What a worker makes of the blocks of others: who is asked, and what one that does not answer costs."""

from collections.abc import Sequence

import numpy as np

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import SHARED, Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.block_source import BlockPlace

CONNECT_S, READ_S = 0.5, 0.125
KEYS = [bytes([number]) * 16 for number in range(4)]


class Remote:
    """Other nodes, of which some do not answer."""

    def __init__(self, clock: ManualClock, *silent: str) -> None:
        self.clock = clock
        self.silent = set(silent)
        self.asked: list[str] = []

    def connect(self, node: str) -> None:
        self.clock.advance(CONNECT_S)

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> list[ReadResult]:
        for _, place in wanted:
            self.asked.append(place.node)
            self.clock.advance(READ_S)
            if place.node in self.silent:
                raise Unavailable(f"{place.node} does not answer")
        return [ReadResult.READ] * len(wanted)


def others(remote: Remote, clock: ManualClock, **held: Sequence[bytes]) -> OtherWorkers:
    """What a worker of node `here` sees, `held` being the blocks in host memory by node, each of which has one worker."""
    blocks = BlockMap(SHARED)
    for node, keys in held.items():
        packed = [(key, Residency(frozenset({Tier.HOST}), slot).pack()) for slot, key in enumerate(keys)]
        blocks.replace((f"worker-{node}", "1"), node, packed)
    return OtherWorkers(blocks, "here", "me", {Tier.REMOTE: remote}, clock.now)


def read(workers: OtherWorkers, keys: Sequence[bytes]) -> list[bool]:
    return workers.read(Tier.REMOTE, keys, [np.zeros(8, np.uint8) for _ in keys])


def test_a_node_that_does_not_answer_costs_only_its_own_blocks() -> None:
    clock = ManualClock()
    remote = Remote(clock, "gone")
    workers = others(remote, clock, gone=KEYS[:2], there=KEYS[2:])
    assert read(workers, KEYS) == [False, False, True, True]
    assert workers.decisions["remote_unavailable"] == 2
    assert workers.tiers(KEYS) == [], "its blocks are planned for while it is known not to answer"
    assert workers.tiers(KEYS[2:]) == [Tier.REMOTE] * 2


def test_a_node_is_asked_again_after_a_while_and_its_blocks_are_not_forgotten() -> None:
    clock = ManualClock()
    remote = Remote(clock, "gone")
    workers = others(remote, clock, gone=KEYS)
    assert read(workers, KEYS) == [False] * 4
    remote.silent.clear()
    clock.advance(60.0)
    assert workers.tiers(KEYS) == [Tier.REMOTE] * 4
    assert read(workers, KEYS) == [True] * 4


def test_blocks_that_two_nodes_hold_are_read_from_the_one_that_answers() -> None:
    clock = ManualClock()
    remote = Remote(clock, "gone")
    workers = others(remote, clock, gone=KEYS, there=KEYS)
    read(workers, KEYS[:1])
    assert read(workers, KEYS) == [True] * 4
    assert remote.asked[-4:] == ["there"] * 4


def test_only_the_time_in_which_blocks_come_is_that_of_a_read() -> None:
    clock = ManualClock()
    workers = others(Remote(clock, "gone"), clock, gone=KEYS[:1], there=KEYS[1:])
    assert read(workers, KEYS) == [False, True, True, True]
    assert workers.lost_s[Tier.REMOTE] == 2 * CONNECT_S + READ_S
    assert clock.now() - workers.lost_s[Tier.REMOTE] == 3 * READ_S
