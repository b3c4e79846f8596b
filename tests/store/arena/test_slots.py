"""Slots that are written, read, damaged, and read while they are written, in one process and in several."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.store.arena.layout import PAGE, REGION_HEADER, REGION_MAGIC, SLOT_BYTES, RegionLayout
from pbkv_cluster.store.arena.slots import ReadResult, RegionSlots, SlotReader
from tests.polling import wait_for
from tests.store.arena.blocks import MODEL, NAMESPACE, label, mapped, payload

SLOTS, BYTES = 3, 256
LAYOUT = RegionLayout(SLOTS, BYTES)


def region(layout: RegionLayout = LAYOUT) -> memoryview:
    return memoryview(bytearray(layout.size))


def read(reader: SlotReader, slot: int, number: int) -> ReadResult:
    target = np.zeros(reader.layout.payload_bytes, np.uint8)
    result = reader.read(slot, label(number).key, target)
    assert (result is ReadResult.READ) <= bool((target == payload(number, len(target))).all())
    return result


def test_a_block_is_found_with_all_that_was_said_of_it() -> None:
    memory = region()
    slots = RegionSlots(memory, LAYOUT, MODEL, wall=lambda: 123.5)
    slots.write(1, label(7), payload(7, BYTES))
    reader = SlotReader(memory, LAYOUT)
    ((slot, header),) = reader.headers()
    assert (slot, header.label, header.length, header.stored_at) == (1, label(7), BYTES, 123.5)
    assert header.label.is_consistent
    assert reader.find(label(7).key) == 1
    assert read(reader, 1, 7) is ReadResult.READ
    assert read(reader, 1, 8) is ReadResult.ABSENT
    assert read(reader, 0, 7) is ReadResult.ABSENT
    assert reader.find(label(8).key) is None


def test_a_block_of_another_tenant_has_another_key() -> None:
    memory = region()
    RegionSlots(memory, LAYOUT, MODEL).write(0, label(7), payload(7, BYTES))
    other = label(7, parent=b"another tenant's", namespace=b"another tenant's")
    assert SlotReader(memory, LAYOUT).find(other.key) is None
    assert not other._replace(parent=NAMESPACE).is_consistent


def test_a_restarted_owner_finds_all_its_blocks_and_an_emptied_slot_is_empty() -> None:
    memory = region()
    first = RegionSlots(memory, LAYOUT, MODEL)
    for slot in range(SLOTS):
        first.write(slot, label(slot), payload(slot, BYTES))
    first.clear(1)
    again = RegionSlots(memory, LAYOUT, MODEL)
    assert {slot: header.label for slot, header in again.headers()} == {0: label(0), 2: label(2)}


@pytest.mark.parametrize(
    ("layout", "model"), [(RegionLayout(SLOTS, BYTES), b"another model's "), (RegionLayout(SLOTS - 1, BYTES), MODEL)]
)
def test_another_model_or_layout_finds_nothing(layout: RegionLayout, model: bytes) -> None:
    memory = region()
    RegionSlots(memory, LAYOUT, MODEL).write(0, label(0), payload(0, BYTES))
    assert list(RegionSlots(memory, layout, model).headers()) == []


def test_another_version_of_the_layout_is_refused_by_name() -> None:
    memory = region()
    memory[: REGION_HEADER.size] = REGION_HEADER.pack(REGION_MAGIC, 7, SLOTS, BYTES, MODEL)
    with pytest.raises(FailedPrecondition, match="a region of the arena has layout version 7; this program reads version 1"):
        RegionLayout.unpack(memory)


@given(payload_bytes=st.integers(8, 1 << 16), size=st.integers(0, 1 << 20))
def test_a_region_has_as_many_slots_as_fit(payload_bytes: int, size: int) -> None:
    slots = RegionLayout(1, payload_bytes).slots_in(size)
    assert slots == 0 or RegionLayout(slots, payload_bytes).size <= size < RegionLayout(slots + 2, payload_bytes).size + PAGE


def test_a_region_without_a_header_is_not_read() -> None:
    assert RegionLayout.unpack(region()) is None
    memory = region()
    RegionSlots(memory, LAYOUT, MODEL)
    assert RegionLayout.unpack(memory) == LAYOUT
    assert RegionLayout.unpack(memory[:PAGE]) is None, "shorter than its header says"


@given(at=st.integers(0, SLOT_BYTES + BYTES - 1), bit=st.integers(0, 7))
def test_whichever_bit_flips_the_block_is_not_believed(at: int, bit: int) -> None:
    memory = region()
    slots = RegionSlots(memory, LAYOUT, MODEL)
    slots.write(0, label(7), payload(7, BYTES))
    place = LAYOUT.headers + at if at < SLOT_BYTES else LAYOUT.payloads + at - SLOT_BYTES
    unused = 152 <= at < SLOT_BYTES
    memory[place] ^= 1 << bit
    if at == 0 and bit == 0:
        assert not slots.is_sound(0, verify=True), "odd: it is being written"
    elif at >= 8 and not unused:
        assert not slots.is_sound(0, verify=True)
        assert read(slots, 0, 7) in (ReadResult.ABSENT, ReadResult.DAMAGED)
    if at >= SLOT_BYTES:
        assert slots.is_sound(0, verify=False), "without verification only the header is looked at"


class Interrupting(SlotReader):
    """A reader during whose copy something happens."""

    def read_while(self, slot: int, number: int, what: object) -> ReadResult:
        payloads = self._payloads

        class Payloads:
            def __getitem__(self, at: int) -> object:
                half = payloads[at].copy()
                assert callable(what)
                what()
                half[BYTES // 2 :] = payloads[at][BYTES // 2 :]
                return half

        self._payloads = Payloads()  # type: ignore[assignment]
        try:
            return read(self, slot, number)
        finally:
            self._payloads = payloads


@given(st.sampled_from(["begin", "write", "clear", "format", "same"]))
def test_what_changes_while_it_is_copied_is_not_believed(change: str) -> None:
    memory = region()
    slots = RegionSlots(memory, LAYOUT, MODEL)
    slots.write(0, label(1), payload(1, BYTES))

    def happens() -> None:
        if change == "begin":
            slots.begin(0)
            memory[LAYOUT.payloads + BYTES - 1] = 99
        elif change == "clear":
            slots.clear(0)
        elif change == "format":
            other = RegionSlots(memory, LAYOUT, b"another model's ")
            other.write(0, label(2), payload(2, BYTES))
        else:
            number = 2 if change == "write" else 1
            slots.write(0, label(number), payload(number, BYTES))

    assert Interrupting(memory, LAYOUT).read_while(0, 1, happens) is ReadResult.OVERWRITTEN


# --- several processes ---

BIG = RegionLayout(2, 1 << 16)
OWNER = """
import sys
from tests.store.arena.blocks import MODEL, label, mapped, payload
from tests.store.arena.test_slots import BIG, CYCLE
from pbkv_cluster.store.arena.slots import RegionSlots
slots = RegionSlots(mapped(int(sys.argv[1]), 0, BIG.size), BIG, MODEL)
blocks = [(label(number), payload(number, BIG.payload_bytes)) for number in range(CYCLE)]
number = 0
while True:
    slots.write(0, *blocks[number % CYCLE])
    number += 1
"""
CYCLE = 5
READS = 2000


@pytest.fixture
def shared() -> int:
    file = os.memfd_create("slots-of-a-test", 0)
    os.ftruncate(file, BIG.size)
    os.set_inheritable(file, True)
    return file


def owner(file: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OWNER, str(file)], pass_fds=(file,))


def test_a_reader_that_races_the_owner_never_believes_a_mixed_slot(shared: int) -> None:
    memory = mapped(shared, 0, BIG.size)
    process = owner(shared)
    try:
        wait_for(lambda: RegionLayout.unpack(memory) is not None)
        reader, results = SlotReader(memory, BIG), Counter[ReadResult]()
        deadline = time.monotonic() + 120
        while results.total() < READS or min(results[ReadResult.READ], results[ReadResult.OVERWRITTEN]) < 3:
            header = reader.header(0)
            if header is not None:
                results[read(reader, 0, header.label.tokens[0])] += 1  # `read` compares every byte of what it believes
            assert time.monotonic() < deadline, results
        assert not results[ReadResult.DAMAGED], "the generation alone tells, on this machine"
    finally:
        process.kill()
        process.wait()
        os.close(shared)


HALF_WAY = """
import sys
from tests.store.arena.blocks import MODEL, label, mapped, payload
from tests.store.arena.test_slots import BIG
from pbkv_cluster.store.arena.slots import RegionSlots
slots = RegionSlots(mapped(int(sys.argv[1]), 0, BIG.size), BIG, MODEL)
slots.write(0, label(1), payload(1, BIG.payload_bytes))
slots.write(1, label(2), payload(2, BIG.payload_bytes))
slots.begin(0)
slots.payloads[: BIG.payload_bytes // 2] = payload(3, BIG.payload_bytes // 2)
print("half-way", flush=True)
sys.stdin.read()
"""


def test_a_slot_whose_owner_is_killed_while_it_writes_is_not_believed(shared: int) -> None:
    arguments = [sys.executable, "-c", HALF_WAY, str(shared)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(shared,)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half-way\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    memory = mapped(shared, 0, BIG.size)
    reader = SlotReader(memory, BIG)
    assert {read(reader, 0, number) for number in (1, 3)} == {ReadResult.ABSENT}
    again = RegionSlots(memory, BIG, MODEL)  # the next process of the owner
    assert dict(again.headers()).keys() == {1}
    again.write(0, label(4), payload(4, BIG.payload_bytes))
    assert read(reader, 0, 4) is ReadResult.READ, "the slot can be used again"
    os.close(shared)
