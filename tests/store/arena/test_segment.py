"""Arenas that are found again, and memory that a machine does not offer."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import FailedPrecondition, ResourceExhausted, StartupError
from pbkv_cluster.store.arena import arena, machine, page_touch
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import ARENA_HEADER, ARENA_MAGIC, PAGE, RegionLayout
from pbkv_cluster.store.arena.page_touch import PageTouch
from pbkv_cluster.store.arena.segment import HugePages, Memory
from pbkv_cluster.store.arena.slots import RegionSlots
from tests.polling import wait_for
from tests.store.arena.blocks import MODEL, label, mapped, payload

TTL_S = 10.0

SERVE = """
import sys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.store.arena.arena import Arena
arena = Arena(sys.argv[1], 1 << 24, 10.0, SystemClock())
region = arena.acquire("worker", int(sys.argv[2]))
print(arena.path, region.offset, region.size, flush=True)
sys.stdin.read()
"""


class Store(NamedTuple):
    """A host store in another process, which has given out one region."""

    process: subprocess.Popen[str]
    path: Path
    offset: int
    size: int

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def store(name: str, size: int) -> Iterator[Store]:
    arguments = [sys.executable, "-c", SERVE, name, str(size)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path, offset, length = process.stdout.readline().split()
        try:
            yield Store(process, Path(path), int(offset), int(length))
        finally:
            process.kill()


def test_a_store_that_is_killed_loses_no_finished_block_and_the_next_finds_the_arena() -> None:
    name, layout = uuid.uuid4().hex, RegionLayout(4, PAGE)
    with store(name, layout.size) as first:
        worker = os.open(first.path, os.O_RDWR)  # holds the file open, as a worker does
        slots = RegionSlots(mapped(worker, first.offset, first.size), layout, MODEL)
        slots.write(2, label(1), payload(1, PAGE))
        first.kill()
        assert slots.is_sound(2, verify=True)
        slots.write(3, label(2), payload(2, PAGE))  # nobody needs the store for this
        with store(name, layout.size) as second:
            assert (second.offset, second.size) == (first.offset, first.size)
            with closing(ArenaView(second.path)) as view:
                (reader,) = view.regions().values()
                assert dict(reader.headers()).keys() == {2, 3}
        os.close(worker)


def test_only_one_store_serves_an_arena() -> None:
    name = uuid.uuid4().hex
    with closing(Arena(name, PAGE, TTL_S, ManualClock())), pytest.raises(StartupError, match="another host store"):
        Arena(name, PAGE, TTL_S, ManualClock())


@pytest.mark.parametrize("is_there", [False, True])
def test_a_store_that_is_refused_closes_what_it_has_opened_once(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = uuid.uuid4().hex
    with closing(Arena(name, PAGE, TTL_S, ManualClock())) if is_there else nullcontext():
        before = set(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(arena, "try_lock", lambda file, start, size: False)  # another store was faster
        with pytest.raises(StartupError, match="another host store"):
            Arena(name, PAGE, TTL_S, ManualClock())
        assert set(os.listdir("/proc/self/fd")) == before


def test_an_arena_is_gone_with_the_last_process_that_uses_it() -> None:
    name = uuid.uuid4().hex
    with store(name, PAGE) as first:
        first.kill()
    with closing(Arena(name, PAGE, TTL_S, ManualClock())) as arena:
        assert arena.regions() == {}


def test_the_layout_of_another_version_is_refused_by_name_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    name, clock = uuid.uuid4().hex, ManualClock()
    with closing(Arena(name, PAGE, TTL_S, clock)) as old:
        old.acquire("worker", PAGE)
        held = os.open(old.path, os.O_RDWR)
        os.pwrite(held, ARENA_HEADER.pack(ARENA_MAGIC, 7, PAGE), 0)
        with pytest.raises(FailedPrecondition, match="has layout version 7; this program reads version 1"):
            ArenaView(old.path)
    with closing(Arena(name, PAGE, TTL_S, clock)) as new:
        assert not os.path.samestat(new.path.stat(), os.fstat(held))
        assert new.regions() == {}
    assert "an arena is left to the processes that use it, and a new one is made: the header of the arena has" in caplog.text
    os.close(held)


def test_what_is_no_arena_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(1 << 20))
    with pytest.raises(FailedPrecondition, match="is not an arena"):
        ArenaView(other)


@pytest.mark.parametrize(
    ("memory", "setting"),
    [(Memory(huge_pages="reserved"), "host_store.huge_pages"), (Memory(numa_node=1000), "host_store.numa_node")],
)
def test_memory_that_the_machine_does_not_offer_is_refused(memory: Memory, setting: str) -> None:
    with pytest.raises(StartupError, match=f"^{setting}: "):
        Arena(uuid.uuid4().hex, 1 << 50, TTL_S, ManualClock(), memory=memory)


@pytest.mark.parametrize("modes", ["always within_size advise [never] deny force", "always advise never [deny]", None])
def test_transparent_huge_pages_are_refused_where_they_are_off(
    modes: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "shmem_enabled"
    monkeypatch.setattr(machine, "TRANSPARENT_HUGE_PAGES", setting)
    if modes is not None:
        setting.write_text(modes)
    pages: HugePages = "transparent"
    with pytest.raises(StartupError, match=r"host_store\.huge_pages: the kernel gives shared memory no transparent"):
        Memory(pages).check(PAGE)
    setting.write_text("always within_size [advise] never deny force")
    Memory(pages).check(PAGE)


def test_the_memory_of_a_node_that_exists_can_be_bound() -> None:
    with closing(Arena(uuid.uuid4().hex, PAGE, TTL_S, ManualClock(), memory=Memory(numa_node=0))) as arena:
        assert arena.acquire("one", PAGE).size == PAGE


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, statistics = tmp_path / "max", tmp_path / "current", tmp_path / "stat"
    monkeypatch.setattr(machine, "CONTROL_GROUPS", (machine.ControlGroup(limit, used, statistics, "inactive_file"),))
    limit.write_text("max\n")
    free = machine.available_memory()
    assert 0 < free < machine.total_memory()
    limit.write_text("100000\n")
    used.write_text("60000\n")
    statistics.write_text("file 30000\n")
    assert (machine.available_memory(), machine.total_memory()) == (40_000, 100_000)
    statistics.write_text("total_inactive_file 7\nfile 30000\ninactive_file 20000\nactive_file 10000\n")
    assert (machine.available_memory(), machine.total_memory()) == (60_000, 100_000)


def test_the_control_group_of_this_machine_can_be_read() -> None:
    for group in machine.CONTROL_GROUPS:
        if group.limit.exists():
            assert f"{group.reclaimable} " in group.statistics.read_text()


# --- touching ---


def test_pages_are_touched_in_the_background_and_at_once_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_touch, "PIECE_BYTES", 4 * PAGE)
    pinned: list[tuple[int, int]] = []
    with closing(Arena(uuid.uuid4().hex, 64 * PAGE, TTL_S, ManualClock())) as arena:
        region = arena.acquire("one", 30 * PAGE)
        empty = arena.path.stat().st_blocks
        file = os.open(arena.path, os.O_RDWR)
        memory = mapped(file, region.offset, region.size)
        touch = PageTouch(memory, pin=lambda address, size: pinned.append((address, size)))
        assert touch.ready_bytes == 0
        meet = 8 * PAGE - np.frombuffer(memory, np.uint8).ctypes.data % (4 * PAGE)  # where two pieces do
        touch.ensure(meet - PAGE, meet + PAGE)
        assert touch.ready_bytes == 8 * PAGE
        assert arena.path.stat().st_blocks - empty == 8 * PAGE // 512
        touch.start()
        wait_for(lambda: touch.ready_bytes == 30 * PAGE)
        touch.stop()
        assert sum(size for _, size in pinned) == 30 * PAGE
        assert len(set(pinned)) == len(pinned), "a piece was pinned twice"
        assert all(start // (4 * PAGE) == (start + size - 1) // (4 * PAGE) for start, size in pinned)
        assert arena.path.stat().st_blocks - empty == 30 * PAGE // 512
        os.close(file)


def test_pages_are_touched_in_a_process_that_gives_way_to_all_others() -> None:
    code = """
import mmap, os, threading
from pbkv_cluster.store.arena.page_touch import PageTouch
os.nice(15)
if os.getuid() == 0:
    os.setuid(65534)  # root may make a thread give way less
touch = PageTouch(memoryview(mmap.mmap(-1, 1 << 20)))
touch.start()
[thread.join() for thread in threading.enumerate() if thread.name == "page-touch"]
print(touch.ready_bytes)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == (f"{1 << 20}\n", "")


def test_a_lack_of_memory_is_an_error_and_no_signal() -> None:
    with closing(Arena(uuid.uuid4().hex, 4 * PAGE, TTL_S, ManualClock())) as arena:
        region = arena.acquire("one", 4 * PAGE)
        file = os.open(arena.path, os.O_RDWR)
        touch = PageTouch(mapped(file, region.offset, region.size))
        os.ftruncate(file, region.offset)  # as if the machine could not give the pages: writing would end in SIGBUS
        with pytest.raises(ResourceExhausted, match="no memory for all of the arena's region"):
            touch.ensure(0, PAGE)
        assert "no memory" in touch.problem
        touch.start()
        wait_for(lambda: "no memory" in touch.problem)
        touch.stop()
        os.close(file)
