"""Reading the regions of other workers: whatever their owners do meanwhile, no wrong block is believed."""

import mmap
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.region_table import RegionTable
from pbkv_cluster.store.arena.slots import ReadResult, RegionSlots
from pbkv_cluster.store.block_source import BlockPlace
from pbkv_cluster.store.sibling_source import SiblingSource
from tests.store.arena.blocks import MODEL, label, payload

PAYLOAD = 4096
LAYOUT = RegionLayout(8, PAYLOAD)


@dataclass
class Node:
    arena: Arena
    file: int
    clock: ManualClock

    def region(self, owner: str, layout: RegionLayout = LAYOUT, model: bytes = MODEL) -> RegionSlots:
        region = self.arena.acquire(owner, layout.size)
        return RegionSlots(memoryview(mmap.mmap(self.file, region.size, offset=region.offset)), layout, model)

    def source(self) -> SiblingSource:
        return SiblingSource(self.file, MODEL, PAYLOAD)


@pytest.fixture
def node() -> Iterator[Node]:
    clock = ManualClock()
    arena = Arena(uuid.uuid4().hex, 4 << 20, 60.0, clock)
    file = os.open(arena.path, os.O_RDWR)
    yield Node(arena, file, clock)
    os.close(file)
    arena.close()


def place(owner: str, slot: int) -> BlockPlace:
    return BlockPlace("node", owner, slot, Tier.HOST)


def read(source: SiblingSource, *wanted: tuple[BlockLabel, BlockPlace]) -> list[bytes | ReadResult]:
    """The payload of each block, or why there is none."""
    targets = [np.zeros(PAYLOAD, np.uint8) for _ in wanted]
    results = source.read([(block.key, where) for block, where in wanted], targets)
    return [target.tobytes() if result is ReadResult.READ else result for result, target in zip(results, targets, strict=True)]


def test_reads_blocks_of_several_regions(node: Node) -> None:
    one, two = node.region("one"), node.region("two")
    one.write(3, label(1), payload(1, PAYLOAD))
    two.write(5, label(2), payload(2, PAYLOAD))
    found = read(node.source(), (label(1), place("one", 3)), (label(2), place("two", 5)), (label(2), place("one", 5)))
    assert found == [payload(1, PAYLOAD).tobytes(), payload(2, PAYLOAD).tobytes(), ReadResult.ABSENT]


def test_what_is_not_there_is_absent(node: Node) -> None:
    node.region("one").write(3, label(1), payload(1, PAYLOAD))
    source = node.source()
    for where in (place("one", 4), place("one", 8), place("one", -1), place("nobody", 3)):
        assert read(source, (label(1), where)) == [ReadResult.ABSENT]
    assert read(source, (label(2), place("one", 3))) == [ReadResult.ABSENT]


def test_a_region_that_cannot_be_mapped_is_absent_and_no_other(node: Node) -> None:
    node.region("one").write(3, label(1), payload(1, PAYLOAD))
    node.region("two").write(3, label(2), payload(2, PAYLOAD))
    ends = sorted(each.offset for each in RegionTable(node.file, writable=False) if each.size)
    os.truncate(node.file, ends[-1])
    found = read(node.source(), (label(1), place("one", 3)), (label(2), place("two", 3)))
    assert ReadResult.ABSENT in found
    assert len(set(found)) == 2


@pytest.mark.parametrize(("layout", "model"), [(LAYOUT, b"another model..."), (RegionLayout(8, 2 * PAYLOAD), MODEL)])
def test_regions_of_another_model_or_layout_are_not_read(node: Node, layout: RegionLayout, model: bytes) -> None:
    region = node.region("one", layout, model)
    region.write(3, label(1), payload(1, layout.payload_bytes))
    assert read(node.source(), (label(1), place("one", 3))) == [ReadResult.ABSENT]


def test_a_region_that_is_formatted_anew_or_moves_is_mapped_again(node: Node) -> None:
    source = node.source()
    node.region("one", LAYOUT, b"another model...").write(3, label(1), payload(1, PAYLOAD))
    assert read(source, (label(1), place("one", 3))) == [ReadResult.ABSENT]
    node.region("one").write(3, label(1), payload(1, PAYLOAD))
    assert read(source, (label(1), place("one", 3))) == [payload(1, PAYLOAD).tobytes()]
    larger = RegionLayout(16, PAYLOAD)
    node.region("one", larger).write(12, label(2), payload(2, PAYLOAD))
    assert read(source, (label(1), place("one", 3)), (label(2), place("one", 12))) == [
        ReadResult.ABSENT,
        payload(2, PAYLOAD).tobytes(),
    ]


def test_a_region_that_is_freed_holds_nothing(node: Node) -> None:
    node.region("one").write(3, label(1), payload(1, PAYLOAD))
    source = node.source()
    assert read(source, (label(1), place("one", 3))) != [ReadResult.ABSENT]
    node.clock.advance(100.0)
    assert not node.arena.regions()
    assert read(source, (label(1), place("one", 3))) == [ReadResult.ABSENT]


def test_a_block_that_is_overwritten_meanwhile_is_never_a_wrong_one(node: Node) -> None:
    region, source = node.region("one"), node.source()
    expected = {number: payload(number, PAYLOAD).tobytes() for number in range(4)}
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            region.write(0, label(number % 4), payload(number % 4, PAYLOAD))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    found = [(number % 4, read(source, (label(number % 4), place("one", 0)))[0]) for number in range(400)]
    stop.set()
    writer.join()
    whole = [(number, each) for number, each in found if isinstance(each, bytes)]
    assert whole, "the reader never won"
    assert all(each == expected[number] for number, each in whole)
