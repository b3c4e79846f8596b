"""Regions of real shared memory that expire on a clock which the tests advance."""

import mmap
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import InvalidArgument, ResourceExhausted, Unavailable
from pbkv_cluster.store.arena.arena import Arena, Region
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import DATA_OFFSET
from pbkv_cluster.store.arena.region_lock import try_lock

PAGE = mmap.PAGESIZE
PAGES = 12
TTL_S = 10.0


def make(clock: ManualClock, pages: int = PAGES, name: str = "", **settings: Any) -> Arena:
    return Arena(name or uuid.uuid4().hex, pages * PAGE, TTL_S, clock, **settings)


def taken(arena: Arena) -> int:
    """Bytes of memory that the regions take."""
    return arena.path.stat().st_blocks * 512 - DATA_OFFSET


def fill(arena: Arena, region: Region, byte: bytes) -> None:
    with mapped(arena, region) as memory:
        memory[:] = byte * len(memory)


def mapped(arena: Arena, region: Region) -> mmap.mmap:
    """The region as its worker maps it."""
    descriptor = os.open(arena.path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, region.size, offset=region.offset)
    finally:
        os.close(descriptor)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def arena(clock: ManualClock) -> Iterator[Arena]:
    arena = make(clock)
    yield arena
    arena.close()


def test_a_region_is_memory_that_others_do_not_touch(arena: Arena) -> None:
    one, two = arena.acquire("one", 3 * PAGE), arena.acquire("two", 2 * PAGE)
    with mapped(arena, one) as first, mapped(arena, two) as second:
        first[:] = b"1" * len(first)
        second[:] = b"2" * len(second)
        assert first[:] == b"1" * 3 * PAGE
        with mapped(arena, one) as again:  # another process of the same worker
            assert again[:] == first[:]


def test_sizes_are_rounded_up_to_pages(arena: Arena) -> None:
    region = arena.acquire("one", PAGE + 1)
    assert region.size == 2 * PAGE
    assert arena.acquire("one", 2 * PAGE - 5) is region
    assert arena.acquire("two", 1).offset % PAGE == 0


def test_a_region_that_may_be_less_takes_what_there_is_but_no_more_than_its_part(clock: ManualClock) -> None:
    arena = make(clock, workers=3)
    assert arena.acquire("one", 100 * PAGE, may_be_less=True).size == 4 * PAGE
    assert arena.acquire("two", 3 * PAGE, may_be_less=True).size == 3 * PAGE
    again = arena.acquire("one", 100 * PAGE, may_be_less=True)
    assert (again.offset, again.size) == (DATA_OFFSET, 4 * PAGE)
    arena.acquire("three", 4 * PAGE)
    assert arena.acquire("four", 100 * PAGE, may_be_less=True).size == PAGE
    assert arena.acquire("five", 100 * PAGE, may_be_less=True).size == 0
    with pytest.raises(ResourceExhausted, match="no room"):
        arena.acquire("six", 100 * PAGE)
    arena.close()


@pytest.mark.parametrize("pages", [1, 2, 4, 100])
def test_a_restarted_worker_whose_region_may_be_less_keeps_it_whatever_it_asks_for(arena: Arena, pages: int) -> None:
    region = arena.acquire("one", 3 * PAGE, may_be_less=True)
    fill(arena, region, b"x")
    again = arena.acquire("one", pages * PAGE, may_be_less=True)
    assert (again.offset, again.size) == (region.offset, 3 * PAGE)
    with mapped(arena, again) as memory:
        assert memory[:] == b"x" * 3 * PAGE


def test_the_capacity_is_whole_pages_and_the_file_has_that_length(clock: ManualClock) -> None:
    arena = Arena(uuid.uuid4().hex, 3 * PAGE + 100, TTL_S, clock)
    assert arena.capacity == 3 * PAGE
    assert arena.path.stat().st_size == DATA_OFFSET + 3 * PAGE
    arena.close()


def test_memory_is_taken_when_it_is_written_to(arena: Arena) -> None:
    region = arena.acquire("one", 4 * PAGE)
    assert taken(arena) == 0
    fill(arena, region, b"x")
    assert taken(arena) == 4 * PAGE


def test_what_the_machine_lacks_is_not_promised(clock: ManualClock) -> None:
    def left() -> int:
        return 5 * PAGE - taken(limited)

    limited: Arena = make(clock, available=left)
    one = limited.acquire("one", 3 * PAGE)
    refused = f"the machine has no memory for {3 * PAGE} bytes more of the arena: {2 * PAGE} bytes are available"
    for _ in range(2):  # before and after the first region has taken what it was promised
        with pytest.raises(ResourceExhausted, match=refused):
            limited.acquire("two", 3 * PAGE)
        fill(limited, one, b"x")
    assert set(limited.regions()) == {"one"}
    assert limited.acquire("two", 2 * PAGE).size == 2 * PAGE
    limited.close()


def test_a_worker_that_restarts_gets_the_same_region_with_its_bytes(arena: Arena, clock: ManualClock) -> None:
    region = arena.acquire("one", 2 * PAGE)
    with mapped(arena, region) as memory:
        memory[:5] = b"hello"
    clock.advance(TTL_S)
    again = arena.acquire("one", 2 * PAGE)
    assert (again.offset, again.size) == (region.offset, region.size)
    with mapped(arena, again) as memory:
        assert memory[:5] == b"hello"


def test_another_size_gets_another_region(arena: Arena) -> None:
    fill(arena, arena.acquire("one", 10 * PAGE), b"x")
    fill(arena, arena.acquire("one", 11 * PAGE), b"x")
    fill(arena, arena.acquire("one", PAGE), b"x")
    assert taken(arena) == PAGE


def test_a_region_expires_unless_it_is_renewed(arena: Arena, clock: ManualClock) -> None:
    arena.acquire("renews", PAGE)
    arena.acquire("silent", PAGE)
    for _ in range(3):
        clock.advance(0.6 * TTL_S)
        arena.acquire("renews", PAGE)
    assert set(arena.regions()) == {"renews"}
    clock.advance(TTL_S)
    assert set(arena.regions()) == {"renews"}
    clock.advance(0.001)
    assert arena.regions() == {}


def test_an_expired_region_is_given_to_others(arena: Arena, clock: ManualClock) -> None:
    arena.acquire("silent", 8 * PAGE)
    clock.advance(0.5 * TTL_S)
    arena.acquire("other", 2 * PAGE)
    with pytest.raises(ResourceExhausted):
        arena.acquire("new", 8 * PAGE)
    clock.advance(0.6 * TTL_S)
    assert arena.acquire("new", 8 * PAGE).offset == DATA_OFFSET
    assert set(arena.regions()) == {"other", "new"}


def test_a_late_renewal_keeps_its_bytes_if_nobody_has_taken_them(arena: Arena, clock: ManualClock) -> None:
    with mapped(arena, arena.acquire("late", PAGE)) as memory:
        memory[:5] = b"still"
        clock.advance(5 * TTL_S)
        arena.acquire("late", PAGE)
        assert memory[:5] == b"still"


def test_the_memory_of_an_expired_region_is_given_back_and_reads_as_zeros(arena: Arena, clock: ManualClock) -> None:
    region = arena.acquire("one", 3 * PAGE)
    with mapped(arena, region) as memory:
        memory[:] = b"x" * len(memory)
        clock.advance(TTL_S + 1)
        assert arena.regions() == {}
        assert taken(arena) == 0
        assert memory[:] == bytes(3 * PAGE)


def test_a_full_arena_refuses_and_stays_as_it_was(arena: Arena) -> None:
    one = arena.acquire("one", 7 * PAGE)
    with pytest.raises(ResourceExhausted, match=f"of {PAGES * PAGE} bytes has no room for {6 * PAGE} more"):
        arena.acquire("two", 5 * PAGE + 1)
    assert arena.regions() == {"one": one}
    assert arena.acquire("two", 5 * PAGE).offset == DATA_OFFSET + 7 * PAGE
    with pytest.raises(ResourceExhausted):
        arena.acquire("three", 1)


def test_a_gap_is_filled_where_it_is_large_enough(arena: Arena, clock: ManualClock) -> None:
    for worker, pages in (("a", 2), ("b", 3), ("c", 4)):
        arena.acquire(worker, pages * PAGE)
    clock.advance(0.9 * TTL_S)
    for worker, pages in (("a", 2), ("c", 4)):
        arena.acquire(worker, pages * PAGE)
    clock.advance(0.9 * TTL_S)  # b expires and leaves a gap of 3 pages
    assert arena.acquire("two", 2 * PAGE).offset == DATA_OFFSET + 2 * PAGE
    assert arena.acquire("three", 3 * PAGE).offset == DATA_OFFSET + 9 * PAGE  # the rest of the gap is too small
    assert arena.acquire("one", PAGE).offset == DATA_OFFSET + 4 * PAGE


def test_a_size_must_not_be_negative(arena: Arena) -> None:
    with pytest.raises(InvalidArgument, match=r"^bytes: "):
        arena.acquire("one", -1)


def test_size_zero_renews_a_region_or_only_makes_the_worker_known(arena: Arena, clock: ManualClock) -> None:
    assert arena.acquire("stranger", 0).size == 0
    assert set(arena.regions()) == {"stranger"}
    region = arena.acquire("one", PAGE)
    clock.advance(arena.ttl_s / 2)
    assert arena.acquire("one", 0) is region
    assert region.expires_at == clock.now() + arena.ttl_s
    clock.advance(2 * arena.ttl_s)
    assert arena.regions() == {}


def test_a_worker_that_is_known_stays_so_if_it_gets_no_memory(arena: Arena) -> None:
    arena.acquire("one", 0)
    with pytest.raises(ResourceExhausted):
        arena.acquire("one", (PAGES + 1) * PAGE)
    assert {owner: region.size for owner, region in arena.regions().items()} == {"one": 0}
    assert arena.acquire("one", PAGE).size == PAGE
    with closing(ArenaView(arena.path)) as view:
        assert [(place.owner, place.size) for place in view.places()] == [("one", PAGE)]


def test_a_silent_worker_keeps_its_region_until_it_dies(arena: Arena, clock: ManualClock) -> None:
    region = arena.acquire("one", PAGE)
    worker = os.open(arena.path, os.O_RDWR)
    try:
        assert try_lock(worker, region.offset, region.size)
        clock.advance(2 * arena.ttl_s)
        assert set(arena.regions()) == {"one"}
        with pytest.raises(Unavailable, match="one still uses"):
            arena.acquire("one", 2 * PAGE)
        assert arena.acquire("two", PAGE).offset != region.offset
    finally:
        os.close(worker)
    clock.advance(2 * arena.ttl_s)
    assert arena.regions() == {}
    assert arena.acquire("three", PAGE).offset == region.offset


def test_closing_removes_the_file_and_leaves_mapped_memory(arena: Arena) -> None:
    with mapped(arena, arena.acquire("one", PAGE)) as memory:
        memory[:3] = b"abc"
        arena.close()
        assert not arena.path.exists()
        assert memory[:3] == b"abc"
    arena.close()


def test_the_kernel_frees_the_arena_of_a_killed_process() -> None:
    code = f"""
import sys
import uuid
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.store.arena.arena import Arena
arena = Arena({uuid.uuid4().hex!r}, {PAGES * PAGE}, 10.0, SystemClock())
region = arena.acquire("one", {PAGE})
print(arena.path, region.offset, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path, offset = owner.stdout.readline().split()
        file = os.open(path, os.O_RDWR)  # as a worker does
        with mmap.mmap(file, PAGE, offset=int(offset)) as memory:
            os.close(file)
            memory[:5] = b"alive"
            owner.kill()
            owner.wait()
            assert not Path(path).exists()
            assert memory[:5] == b"alive"


def largest_gap(arena: Arena) -> int:
    """The largest gap between regions, in pages."""
    regions = sorted(arena.regions().values(), key=lambda region: region.offset)
    starts = [DATA_OFFSET, *(region.offset + region.size for region in regions)]
    ends = [*(region.offset for region in regions), DATA_OFFSET + arena.capacity]
    return int(max((end - start) // PAGE for start, end in zip(starts, ends, strict=True)))


OPERATIONS = st.one_of(
    st.tuples(st.just("acquire"), st.sampled_from("abcd"), st.integers(1, 6 * PAGE)),
    st.tuples(st.just("advance"), st.just(""), st.integers(1, 8)),
)


@settings(deadline=None, max_examples=30)
@given(operations=st.lists(OPERATIONS, max_size=25))
def test_regions_never_overlap(operations: list[tuple[str, str, int]]) -> None:
    clock = ManualClock()
    arena = make(clock)
    ends: dict[str, float] = {}
    try:
        for operation, worker, number in operations:
            if operation == "advance":
                clock.advance(number)
            else:
                try:
                    region = arena.acquire(worker, number)
                except ResourceExhausted:
                    ends.pop(worker, None)
                    assert -(-number // PAGE) > largest_gap(arena)
                else:
                    assert 0 <= region.size - number < PAGE
                    ends[worker] = clock.now() + TTL_S
            regions = arena.regions()
            assert {worker: region.expires_at for worker, region in regions.items()} == {
                worker: end for worker, end in ends.items() if end >= clock.now()
            }
            end = DATA_OFFSET
            for region in sorted(regions.values(), key=lambda region: region.offset):
                assert region.offset >= end
                assert region.offset % PAGE == 0
                end = region.offset + region.size
            assert end <= DATA_OFFSET + arena.capacity
            with closing(ArenaView(arena.path)) as view:
                assert set(view.places()) == {(owner, each.offset, each.size) for owner, each in regions.items()}
    finally:
        arena.close()
