"""Blocks in a real file: kept, found again, damaged, and refused where the disk has no room."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest as checksum

from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.store.arena.layout import RegionLayout, SlotHeader
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.disk import disk_slots
from pbkv_cluster.store.disk.disk_slots import DiskSlots, open_disk
from pbkv_cluster.store.disk.write_behind import WriteBehind
from tests.polling import wait_for
from tests.store.arena.blocks import MODEL, label, payload

SLOTS, BYTES = 6, 4096
LAYOUT = RegionLayout(SLOTS, BYTES)
READ, ABSENT, DAMAGED = ReadResult.READ, ReadResult.ABSENT, ReadResult.DAMAGED


def header(number: int, stored_at: float = 5.0) -> SlotHeader:
    block = payload(number, BYTES)
    return SlotHeader(label(number), BYTES, stored_at, checksum(block.data))


def room() -> Bytes:
    return np.zeros(BYTES, np.uint8)


def holds(disk: DiskSlots | WriteBehind, slot: int, number: int) -> bool:
    """Whether a slot is read as a block, to the byte."""
    target = room()
    return disk.read(slot, target) is READ and bool((target == payload(number, BYTES)).all())


@contextmanager
def opened(path: Path, layout: RegionLayout = LAYOUT, model: bytes = MODEL) -> Iterator[DiskSlots]:
    disk = DiskSlots(path, layout, model)
    try:
        yield disk
    finally:
        disk.close()


@contextmanager
def writing(path: Path, **options: int) -> Iterator[WriteBehind]:
    disk = WriteBehind(DiskSlots(path, LAYOUT, MODEL), **options)
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "blocks"


def test_blocks_are_found_again_with_all_that_was_said_of_them(path: Path) -> None:
    with opened(path) as disk:
        for slot, number in ((0, 7), (3, 8), (5, 9)):
            disk.write(slot, header(number), payload(number, BYTES))
        disk.clear(3)
        assert disk.read(3, room()) is ABSENT
    assert path.stat().st_size == LAYOUT.size
    assert path.stat().st_blocks * 512 >= LAYOUT.size, "the space is not taken"
    assert path.stat().st_mode & 0o777 == 0o600, "others can read what prompts contained"
    with opened(path) as disk:
        assert dict(disk.headers()) == {0: header(7), 5: header(9)}
        assert holds(disk, 0, 7)
        assert holds(disk, 5, 9)
        disk.clear(0)
    with opened(path) as disk:
        assert dict(disk.headers()) == {5: header(9)}


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (RegionLayout(SLOTS + 1, BYTES), MODEL),
        (RegionLayout(SLOTS, 2 * BYTES), MODEL),
        (LAYOUT, b"another model's "),
    ],
    ids=["size", "payload", "model"],
)
def test_another_layout_or_model_finds_nothing(path: Path, layout: RegionLayout, model: bytes) -> None:
    with opened(path) as disk:
        disk.write(1, header(1), payload(1, BYTES))
    with opened(path, layout, model) as other:
        assert dict(other.headers()) == {}
        assert other.read(1, np.zeros(layout.payload_bytes, np.uint8)) is ABSENT
    with opened(path) as disk:
        assert dict(disk.headers()) == {}


def test_a_file_that_was_cut_is_made_anew(path: Path) -> None:
    with opened(path) as disk:
        disk.write(1, header(1), payload(1, BYTES))
    os.truncate(path, LAYOUT.size - 1)
    with opened(path) as disk:
        assert dict(disk.headers()) == {}


def test_a_file_has_one_process_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import sys
from tests.store.disk.test_disk_slots import *
disk = DiskSlots(Path({str(path)!r}), LAYOUT, MODEL)
disk.write(2, header(2), payload(2, BYTES))
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(Unavailable, match="another process uses"):
            DiskSlots(path, LAYOUT, MODEL)
        monkeypatch.setattr(disk_slots, "PAUSE_S", 0.001)
        with pytest.raises(StartupError, match=r"engine\.disk_path: another process uses"):
            open_disk(path, LAYOUT, MODEL)
        other.kill()
        other.wait()
    disk = open_disk(path, LAYOUT, MODEL)
    assert holds(disk, 2, 2), "what a killed process has written is there"
    disk.close()


def test_a_disk_that_is_too_small_is_refused_by_name_and_left_as_it_was(path: Path) -> None:
    with pytest.raises(StartupError, match=r"^engine\.disk_bytes: .* has no room for \d+ bytes: \d+ are free$"):
        DiskSlots(path, RegionLayout(1 << 40, BYTES), MODEL)
    assert not path.exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"^engine\.disk_path: .* cannot be opened"):
        DiskSlots(tmp_path / "file" / "blocks", LAYOUT, MODEL)


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, LAYOUT.size - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_makes_a_block_another(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.unlink(missing_ok=True)
    with opened(path) as disk:
        for slot in range(SLOTS):
            disk.write(slot, header(slot + 1), payload(slot + 1, BYTES))
        file = os.open(path, os.O_RDWR)
        (byte,) = os.pread(file, 1, at)
        os.pwrite(file, bytes([byte ^ 1 << bit]), at)
        os.close(file)
        wrong = [slot for slot in range(SLOTS) if not holds(disk, slot, slot + 1)]
        assert len(wrong) <= 1
        results = {disk.read(slot, room()) for slot in wrong}
        assert results <= {ABSENT, DAMAGED}
        if at >= LAYOUT.payloads:
            assert results == {DAMAGED}


# --- writing behind ---


def test_what_is_stored_can_be_read_at_once_and_is_written_when_it_is_closed(path: Path) -> None:
    with writing(path) as disk:
        for turn in range(3):
            for slot in range(SLOTS):
                assert disk.write(slot, header(10 * turn + slot), payload(10 * turn + slot, BYTES))
                assert holds(disk, slot, 10 * turn + slot)
    with opened(path) as again:
        assert {slot: found.label for slot, found in again.headers()} == {slot: label(20 + slot) for slot in range(SLOTS)}
        assert all(holds(again, slot, 20 + slot) for slot in range(SLOTS))


def test_a_full_buffer_is_waited_for_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Semaphore(0), DiskSlots.write

    def slow(disk: DiskSlots, slot: int, found: SlotHeader, block: Bytes) -> None:
        go.acquire()
        write(disk, slot, found, block)

    monkeypatch.setattr(DiskSlots, "write", slow)
    with writing(path, buffer_bytes=2 * BYTES) as disk:
        go.release()
        disk.write(0, header(0), payload(0, BYTES))
        disk.flush()
        assert disk.seconds(2) == 0.0
        disk.write(1, header(1), payload(1, BYTES))
        disk.write(2, header(2), payload(2, BYTES))
        assert disk.seconds(2) == pytest.approx(2 * disk.seconds(1))
        assert disk.seconds(1) > 0.0
        third = threading.Thread(target=disk.write, args=(3, header(3), payload(3, BYTES)))
        third.start()
        for slot in (0, 1, 2):
            assert holds(disk, slot, slot)
        assert third.is_alive()
        go.release(3)
        third.join(30)
        assert holds(disk, 3, 3)


def test_a_slot_that_the_disk_does_not_take_is_lost_and_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(path) as disk:
        disk.write(1, header(1), payload(1, BYTES))
        disk.flush()

        def full(file: int, data: bytes, offset: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("pbkv_cluster.store.disk.disk_slots.os.pwrite", full)
            assert disk.write(1, header(2), payload(2, BYTES))
            wait_for(lambda: "1 slots of the disk tier cannot be written: Input/output error" in disk.problem)
        assert disk.read(1, room()) is ABSENT, "not the block that was there before"
        assert not disk.write(1, header(3), payload(3, BYTES))
        assert disk.write(2, header(3), payload(3, BYTES))
        assert holds(disk, 2, 3)
