"""What a worker makes of the blocks of others: who is asked, and what one that does not answer costs."""

from collections.abc import Sequence

import numpy as np

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import SHARED, Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.lanes.lane_speed import TRIAL_AFTER_S, TRIAL_BLOCKS
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
        self.read_s: dict[str, float] = {}  # by node, that a block takes

    def connect(self, node: str) -> None:
        self.clock.advance(CONNECT_S)

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> list[ReadResult]:
        for _, place in wanted:
            self.asked.append(place.node)
            self.clock.advance(self.read_s.get(place.node, READ_S))
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


class Uneven:
    """Two nodes, of which one takes a second for a block and the other a hundredth. To compute one takes a tenth."""

    def __init__(self, **held: Sequence[bytes]) -> None:
        self.clock = ManualClock()
        self.remote = Remote(self.clock)
        self.remote.read_s = {"slow": 1.0, "fast": 0.01}
        self.workers = others(self.remote, self.clock, **held)
        self.workers.compute_block_s = lambda: 0.1

    def measure(self) -> None:
        for keys in (MANY[:1], MANY[-1:]):
            assert read(self.workers, keys) == [True]


MANY = [bytes([number]) * 16 for number in range(40)]


def test_a_block_that_two_nodes_have_is_read_from_the_faster_one() -> None:
    uneven = Uneven(slow=MANY[:-1], fast=MANY[1:])
    uneven.measure()
    assert read(uneven.workers, MANY[1:-1]) == [True] * 38
    assert uneven.remote.asked[2:] == ["fast"] * 38
    assert uneven.workers.tiers(MANY[1:]) == [Tier.REMOTE] * 39


def test_a_node_that_is_slower_than_computing_is_left_alone_where_another_is_not() -> None:
    uneven = Uneven(slow=MANY[:20], fast=MANY[20:])
    assert uneven.workers.tiers(MANY) == [Tier.REMOTE] * 40, "nothing has been measured"
    uneven.measure()
    assert uneven.workers.tiers(MANY) == []
    assert uneven.workers.decisions["remote_slow"] == 1
    assert uneven.workers.tiers(MANY[20:]) == [Tier.REMOTE] * 20


def test_a_slow_node_is_tried_again_with_a_few_blocks_after_a_while() -> None:
    uneven = Uneven(slow=MANY[:20], fast=MANY[20:])
    uneven.measure()
    uneven.clock.advance(TRIAL_AFTER_S)
    assert uneven.workers.tiers(MANY) == [Tier.REMOTE] * TRIAL_BLOCKS
    uneven.remote.read_s["slow"] = 0.01
    read(uneven.workers, MANY[:TRIAL_BLOCKS])
    assert uneven.workers.tiers(MANY) == [Tier.REMOTE] * 40, "it has become faster"


def test_nodes_that_are_equally_slow_are_judged_together() -> None:
    """Whether a load pays, which earlier prefills may hide, is not decided here."""
    uneven = Uneven(slow=MANY[:20], fast=MANY[20:])
    uneven.remote.read_s["fast"] = 0.9
    uneven.measure()
    assert uneven.workers.tiers(MANY) == [Tier.REMOTE] * 40


def test_blocks_of_a_kind_that_is_not_read_are_not_counted_as_slow() -> None:
    workers = others(Remote(ManualClock()), ManualClock(), here=MANY)
    assert workers.tiers(MANY) == []
    assert not workers.decisions
