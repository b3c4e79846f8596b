"""What engines of one node keep in its arena: found by all of them, believed only if it is right, and never an error."""

import errno
import pkgutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from pbkv_cluster.core.errors import ResourceExhausted, Unavailable
from pbkv_cluster.integrations.engine_store import EngineStore, Namespace, StoreSettings
from pbkv_cluster.integrations.engine_store.own_region import BlockWrite
from pbkv_cluster.store.arena.slots import Bytes
from tests.integrations.engine_store.engines import BLOCK, SPACE, block, damage, engine, got, key, keys, node, put, settings
from tests.polling import wait_for


@pytest.fixture
def here() -> Iterator[StoreSettings]:
    with node(settings()) as running:
        yield running


def test_what_one_engine_stores_all_others_read(here: StoreSettings) -> None:
    with engine(here) as one, engine(here) as two, engine(here, reads_only=True) as reader:
        assert one.leading(keys(1, 2, 3)) == two.leading(keys(1, 2, 3)) == 0
        assert put(one, 1, 2, 3) == [True] * 3
        for store in (one, two, reader):
            wait_for(lambda store=store: store.leading(keys(1, 2, 3, 4)) == 3)  # type: ignore[misc]
            assert got(store, 1, 2, 3, 4) == [1, 2, 3, None]
        assert one.counts["loaded_own"] == two.counts["loaded_sibling"] == reader.counts["loaded_sibling"] == 3
        assert one.owner != two.owner


def test_what_others_have_is_read_without_being_looked_for_first(here: StoreSettings) -> None:
    with engine(here) as one, engine(here) as two:
        put(one, 1, 2)
        assert got(two, 1, 2) == [1, 2]


def test_what_a_sibling_has_is_not_stored_twice(here: StoreSettings) -> None:
    with engine(here) as one, engine(here) as two:
        put(one, 1, 2)
        wait_for(lambda: two.leading(keys(1, 2)) == 2)
        assert put(two, 1, 2, 3) == [True] * 3
        assert (two.counts["stored_already"], two.counts["stored"]) == (2, 1)


def test_a_restarted_engine_finds_its_blocks(here: StoreSettings) -> None:
    with engine(here) as before:
        put(before, 1, 2)
        owner = before.owner
    with engine(here) as after:
        assert (after.owner, after.leading(keys(1, 2))) == (owner, 2)
        assert got(after, 1, 2) == [1, 2]
        assert [change.key for change in after.take_changes()] == []


@pytest.mark.parametrize(
    "other",
    [
        replace(SPACE, model="other"),
        replace(SPACE, dtype="bfloat16"),
        replace(SPACE, rank="1/2"),
        replace(SPACE, salt="tenant"),
        replace(SPACE, block_tokens=64),
    ],
)
def test_blocks_of_another_namespace_never_match(here: StoreSettings, other: Namespace) -> None:
    with engine(here) as one:
        put(one, 1)
        assert not one.has(key(1), other)
        assert got(one, 1, namespace=other) == [None]
        store = EngineStore(here, other, BLOCK)
        assert not store.has(key(1))
        assert got(store, 1) == [None]
        store.close()


def test_a_block_counts_only_where_all_ranks_have_it(here: StoreSettings) -> None:
    ranks = [replace(SPACE, rank=f"{rank}/2") for rank in range(2)]
    with engine(here, "0/2") as one, engine(here, "1/2") as two, engine(here, reads_only=True) as scheduler:
        put(one, 1, 2)
        put(two, 1)
        wait_for(lambda: scheduler.leading(keys(1, 2), [ranks[0]]) == 2 and scheduler.leading(keys(1), [ranks[1]]) == 1)
        assert scheduler.leading(keys(1, 2), ranks) == 1


def test_bytes_that_have_changed_are_a_miss(here: StoreSettings) -> None:
    with engine(here) as one, engine(here) as two:
        put(one, 1, 2)
        wait_for(lambda: two.leading(keys(1, 2)) == 2)
        assert damage(here.name, one.owner, BLOCK, only=0) == 1
        assert got(two, 1, 2) == [None, 2]
        assert got(one, 1, 2) == [None, 2]
        assert one.counts["load_damaged"] == two.counts["load_damaged"] == 1
        assert put(one, 1) == [True]  # it was dropped, and can be stored again
        assert got(one, 1) == [1]


def test_blocks_leave_in_the_order_of_their_last_use_and_none_before_what_continues_it(here: StoreSettings) -> None:
    with engine(here) as store:
        assert store.region is not None
        slots = store.region.layout.slots
        put(store, 1, 2, 3)
        put(store, *range(100, 100 + slots - 3))
        got(store, 1, 2)
        put(store, 200, 201)
        assert store.leading(keys(1, 2, 3)) == 3 - 1  # 3 went first: it was used longest ago
        assert store.leading(keys(*range(100, 100 + slots - 3))) == slots - 4
        assert store.region.evicted == 2
        changes = store.take_changes()
        assert [change.key for change in changes if not change.is_stored] == [key(3), key(100 + slots - 4)]


def test_a_block_that_is_being_read_stays(here: StoreSettings) -> None:
    with engine(here) as store:
        assert store.region is not None
        put(store, 1)
        reading, go_on = Event(), Event()
        seen = []

        def deliver(number: int, payload: Bytes) -> None:
            reading.set()
            go_on.wait(10.0)
            seen.append(int(payload.view(np.uint64)[0]))

        future = store.load(keys(1), deliver)
        reading.wait(10.0)
        for number in range(100, 100 + 2 * store.region.layout.slots):
            put(store, number)
        go_on.set()
        assert future.result(10.0) == [True]
        assert seen == [1]


def test_writes_of_the_caller_are_found_once_they_are_committed(here: StoreSettings) -> None:
    with engine(here) as store:
        arrived = Event()
        first, second = store.begin(keys(1, 2))
        assert first is not None
        assert second is not None
        assert store.begin(keys(1)) == [None]
        first.payload[:] = block(1)
        future = store.commit([first], ready=lambda: arrived.wait(10.0))
        assert store.leading(keys(1)) == 0
        arrived.set()
        assert future.result(10.0)
        store.abandon([second])
        assert store.leading(keys(1, 2)) == 1
        assert put(store, 2) == [True]


@pytest.mark.parametrize("by_caller", [True, False])
def test_a_failure_midway_costs_only_the_blocks_after_it_and_no_slot(
    here: StoreSettings, monkeypatch: pytest.MonkeyPatch, by_caller: bool
) -> None:
    with engine(here) as store:
        region = store.region
        assert region is not None
        commit, slots = region.commit, region.layout.slots

        def fail_at_third(writes: list[BlockWrite]) -> None:
            if len(region) == 2:
                raise OSError("scripted")
            commit(writes)

        monkeypatch.setattr(region, "commit", fail_at_third)
        if by_caller:
            writes = [write for write in store.begin(keys(1, 2, 3, 4)) if write is not None]
            for number, write in enumerate(writes, 1):
                write.payload[:] = block(number)
            assert not store.commit(writes).result(10.0)
        else:
            assert put(store, 1, 2, 3, 4) == [False] * 4
        monkeypatch.undo()
        assert got(store, 1, 2, 3, 4) == [1, 2, None, None]
        others = range(10, 10 + slots - 2)
        assert put(store, *others) == [True] * len(others)
        assert len(region) == slots
        assert got(store, 1, 2, *others) == [1, 2, *others], "no two blocks have the same slot"


def test_what_does_not_fit_in_the_queue_is_refused_at_once() -> None:
    with node(settings(pending_bytes=2 * BLOCK, threads=1)) as here, engine(here) as store:
        go_on = Event()
        (write,) = store.begin(keys(9))
        assert write is not None
        waiting = store.commit([write], ready=lambda: go_on.wait(10.0))
        assert put(store, 1, 2) == [False] * 2
        go_on.set()
        assert waiting.result(10.0)
        assert store.counts["store_refused"] == 2

        put(store, 1)
        go_on.clear()
        blocked = store.load(keys(1), lambda number, payload: go_on.wait(10.0))
        assert got(store, 1, 2) == [None, None]
        go_on.set()
        assert blocked.result(10.0) == [True]
        assert store.counts["load_refused"] == 2


def test_without_a_store_everything_is_a_miss_and_nothing_fails() -> None:
    nowhere = StoreSettings.of({"endpoint": "127.0.0.1:1", "start_timeout_s": 0.1})
    with engine(nowhere) as store:
        assert store.problem
        assert store.region is None
        assert put(store, 1) == [False]
        assert store.begin(keys(1)) == [None]
        assert got(store, 1) == [None]
        assert store.leading(keys(1)) == store.clear() == 0
        store.touch(keys(1))
        assert store.counts["store_no_room"] == 2


def test_an_engine_can_end_while_its_store_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        before = set(threading.enumerate())
        store = EngineStore(settings(endpoint=endpoint, start_timeout_s=0.1), SPACE, BLOCK)
        asking, _ = silent.accept()
        closing = Thread(target=store.close, daemon=True)
        closing.start()
        closing.join(30.0)  # a store that is asked for a region has twice as long for its answer
        assert not closing.is_alive()
        links = [thread for thread in threading.enumerate() if thread.name == "pbkv-node-link"]
        assert not set(links) - before, "it was told to end, and not left behind"
        asking.close()


def test_a_store_that_comes_later_is_found(here: StoreSettings) -> None:
    late = settings(start_timeout_s=0.0)
    with node(late), engine(late) as store:
        wait_for(lambda: not store.problem)
        assert put(store, 1) == [True]


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("integrations.engine_store.node_link.OwnRegion", ResourceExhausted("no memory for the headers")),
        ("integrations.engine_store.node_link.Siblings", Unavailable("the arena cannot be opened")),
        ("store.region_lease.mmap.mmap", OSError(errno.ENOMEM, "no memory")),
    ],
)
def test_a_region_that_could_not_be_used_is_taken_again_and_no_other(
    here: StoreSettings, part: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 3
    module, _, name = f"pbkv_cluster.{part}".rpartition(".")
    whole = pkgutil.resolve_name(f"pbkv_cluster.{part}")

    def fails(*arguments: Any, **options: Any) -> Any:
        nonlocal failures
        if failures and threading.current_thread().name == "pbkv-node-link":
            failures -= 1
            raise error
        return whole(*arguments, **options)

    monkeypatch.setattr(pkgutil.resolve_name(module), name, fails)
    with engine(here) as store:
        wait_for(lambda: not store.problem)
        assert not failures
        assert store.owner.endswith(":0")
        with engine(here) as second:
            assert second.owner.endswith(":1")
            assert put(store, 1) == put(second, 2) == [True]


def test_wrong_arguments_are_counted_and_not_raised(here: StoreSettings) -> None:
    with engine(here) as store:
        assert store.put([b"short"], [block(1)]).result(10.0) == [False]
        assert store.put(keys(1), [b"short"]).result(10.0) == [False]
        assert store.put(keys(1, 2), [block(1)]).result(10.0) == [False, False]
        assert store.get(keys(1), [np.zeros(7, np.uint8)]).result(10.0) == [False]
        assert store.leading([bytes(33)]) == 0
        assert store.counts["bad_argument"] == 6

        def fails(number: int, payload: Bytes) -> None:
            raise RuntimeError("the engine's own")

        put(store, 1)
        assert store.load(keys(1), fails).result(10.0) == [False]
        assert store.counts["load_failed"] == 1
