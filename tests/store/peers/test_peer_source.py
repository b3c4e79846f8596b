"""Blocks that are read from other nodes, over real sockets and from real processes."""

import socket
import ssl
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import ReadResult
from pbkv_cluster.store.peers import source as source_module
from pbkv_cluster.store.peers.server import Limits
from pbkv_cluster.store.peers.source import PeerSource
from pbkv_cluster.store.peers.tcp import TcpConnection, TcpTransport
from pbkv_cluster.store.peers.transport import PeerAddress
from tests.polling import wait_for
from tests.store.arena.blocks import label, payload
from tests.store.peers.node import (
    BYTES,
    LAYOUT,
    check,
    overwriting,
    reading,
    room,
    serving,
    serving_process,
    wanted,
)

READ, ABSENT = ReadResult.READ, ReadResult.ABSENT
BIG = RegionLayout(4, 1 << 21)


def test_blocks_of_several_nodes_come_in_the_order_in_which_they_were_asked_for() -> None:
    with serving() as one, serving() as two, reading({"one": one.peer, "two": two.peer}) as source:
        for number in range(LAYOUT.slots):
            two.slots.write(number, label(100 + number), payload(100 + number, BYTES))
        numbers = [3, 105, 0, 107, 100, 7]
        asked = [
            block
            for number in numbers
            for block in wanted([number], node="two" if number >= 100 else "one", slots=[number % 100])
        ]
        targets = room(len(numbers))
        results = source.read(asked, targets)
        assert results == [READ] * len(numbers)
        check(numbers, results, targets)
        assert source.counts["read"] == one.server.counts["served_blocks"] + two.server.counts["served_blocks"] == 6


def test_a_block_is_read_exactly_where_its_slot_holds_it() -> None:
    with serving() as node, reading({"n": node.peer}) as source:

        @settings(deadline=None, max_examples=60)
        @given(
            held=st.dictionaries(st.integers(0, LAYOUT.slots - 1), st.integers(0, 5)),
            asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2 * LAYOUT.slots)), min_size=1, max_size=20),
        )
        def holds(held: dict[int, int], asked: list[tuple[int, int]]) -> None:
            for slot in range(LAYOUT.slots):
                node.slots.clear(slot)
            for slot, number in held.items():
                node.slots.write(slot, label(number), payload(number, BYTES))
            numbers, slots = [number for number, _ in asked], [slot for _, slot in asked]
            targets = room(len(asked))
            results = source.read(wanted(numbers, slots=slots), targets)
            assert results == [READ if held.get(slot) == number else ABSENT for number, slot in asked]
            check(numbers, results, targets)

        holds()


def test_what_is_not_there_is_absent_and_asks_for_no_connection_where_none_is_needed() -> None:
    with serving() as node, reading({"n": node.peer}) as source:
        assert source.read([], []) == []
        assert source.read(wanted([1], tier=Tier.GPU), room(1)) == [ABSENT]
        assert not node.server.counts
        assert source.read(wanted([1], region="another worker"), room(1)) == [ABSENT]
        assert source.read(wanted([1, 2**64 - 1 & 7], slots=[2**64 - 1, 2**63]), room(2)) == [ABSENT, ABSENT]
        assert source.read(wanted([1]), room(1, BYTES // 2)) == [ABSENT], "another layout never matches"
        node.slots.clear(1)
        node.slots.begin(2)
        assert source.read(wanted([1, 2, 3]), room(3)) == [ABSENT, ABSENT, READ]


def test_large_reads_are_cut_into_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "REQUEST_BYTES", 3 * BYTES)
    with serving(limits=Limits(bytes=3 * BYTES)) as node, reading({"n": node.peer}) as source:
        targets = room(LAYOUT.slots)
        results = source.read(wanted(range(LAYOUT.slots)), targets)
        assert results == [READ] * LAYOUT.slots
        check(range(LAYOUT.slots), results, targets)


def test_a_flipped_byte_is_damage_and_the_blocks_around_it_are_not() -> None:
    with serving() as node, reading({"n": node.peer}) as source:
        node.slots.payloads[2 * BYTES + 100] ^= 1
        assert source.read(wanted([1, 2, 3]), room(3)) == [READ, ReadResult.DAMAGED, READ]
        assert source.counts == {"read": 2, "damaged": 1}


def test_a_reader_never_believes_what_the_owner_overwrites_meanwhile() -> None:
    layout, reads = RegionLayout(4, 1 << 16), Counter[ReadResult]()
    with serving_process(layout) as node, reading({"n": node.peer}) as source:
        view = ArenaView(node.path)
        (place,) = view.places()
        with overwriting(node.path, place.offset, layout):
            targets = room(layout.slots, layout.payload_bytes)
            deadline = time.monotonic() + 120
            while reads.total() < 8000 or min(reads[READ], reads[ReadResult.OVERWRITTEN]) < 10:
                numbers = [slot + layout.slots * (reads.total() // layout.slots % 2) for slot in range(layout.slots)]
                results = source.read(wanted(numbers, slots=range(layout.slots)), targets)
                check(numbers, results, targets)
                reads.update(results)
                assert time.monotonic() < deadline, reads
        view.close()
    assert not reads[ReadResult.DAMAGED], "what was overwritten is reported as that"


# --- nodes that do not answer ---


def test_a_node_that_is_not_announced_or_not_there_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = PeerAddress(f"127.0.0.1:{closed.getsockname()[1]}", bytes(32))
    with reading({"gone": gone}) as source:
        with pytest.raises(Unavailable, match="node other does not serve blocks"):
            source.read(wanted([1], node="other"), room(1))
        with pytest.raises(Unavailable, match=r"no blocks can be read from 127\.0\.0\.1"):
            source.read(wanted([1], node="gone"), room(1))


def test_blocks_that_were_read_before_another_node_failed_are_counted() -> None:
    with serving() as node, reading({"n": node.peer}) as source:
        elsewhere = wanted([0], tier=Tier.DISK)
        with pytest.raises(Unavailable, match="node other does not serve blocks"):
            source.read([*elsewhere, *wanted([1, 2]), *wanted([3], node="other")], room(4))
        assert source.counts == {"absent": 1, "read": 2}


def test_a_node_that_is_killed_while_it_sends_is_unavailable_and_its_successor_is_found() -> None:
    peers: dict[str, PeerAddress] = {}
    with serving_process(BIG) as first, reading(peers) as source:
        peers["n"] = first.peer
        numbers = list(range(BIG.slots))
        targets = room(BIG.slots, BIG.payload_bytes)
        assert source.read(wanted(numbers), targets) == [READ] * BIG.slots
        first.freeze()  # so that it is certain to die between two bytes
        with ThreadPoolExecutor() as threads:
            read = threads.submit(source.read, wanted(numbers), targets)
            first.kill()
            assert isinstance(read.exception(60), Unavailable)
        with serving_process(BIG) as second:
            peers["n"] = second.peer
            results = source.read(wanted(numbers), targets)
            assert results == [READ] * BIG.slots, "another server of the node is asked at once"
            check(numbers, results, targets)


def test_a_node_that_hangs_costs_one_time_out_and_is_asked_again_later() -> None:
    now = [0.0]
    with (
        serving_process(LAYOUT) as node,
        reading({"n": node.peer}, timeout_s=2.0, retry_s=2.0, clock=lambda: now[0]) as source,
    ):
        assert source.read(wanted([1]), room(1)) == [READ]
        node.freeze()
        with pytest.raises(Unavailable, match=r"does not send blocks within 2 s"):
            source.read(wanted([1]), room(1))
        now[0] = 1.9
        with pytest.raises(Unavailable, match="has not answered lately"):
            source.read(wanted([1]), room(1))
        node.thaw()
        now[0] = 2.1
        assert source.read(wanted([1]), room(1)) == [READ]
        assert source.counts["failed_requests"] == 1


def test_a_closed_source_ends_reads_that_are_running() -> None:
    with serving_process(LAYOUT) as node, reading({"n": node.peer}, timeout_s=60.0) as source:
        assert source.read(wanted([1]), room(1)) == [READ]
        node.freeze()
        with ThreadPoolExecutor() as threads:
            read = threads.submit(source.read, wanted([1]), room(1))
            wait_for(lambda: read.running())
            source.close()
            assert isinstance(read.exception(30), Unavailable)
        with pytest.raises(Unavailable):
            source.read(wanted([1]), room(1))


def test_many_threads_read_at_once() -> None:
    wrong: list[object] = []

    def run(number: int) -> None:
        for _ in range(50):
            targets = room(2)
            results = source.read(wanted([number, 7 - number]), targets)
            if results != [READ, READ]:
                wrong.append(results)
            check([number, 7 - number], results, targets)

    with serving() as node, reading({"n": node.peer}) as source:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert node.server.counts["served_blocks"] == 800


def test_a_read_uses_the_connection_that_was_made_for_it_and_a_dead_node_is_tried_once() -> None:
    class Counting(TcpTransport):
        made = 0

        def connect(self, peer: PeerAddress, timeout_s: float, tls: ssl.SSLContext | None = None) -> TcpConnection:
            self.made += 1
            return super().connect(peer, timeout_s, tls)

    with serving() as node, closing(PeerSource({"n": node.peer}.get, transport := Counting())) as source:
        for _ in range(2):
            source.connect("n")
        assert source.read(wanted([1]), room(1)) == [READ]
        assert transport.made == 1
    with socket.create_server(("127.0.0.1", 0)) as unused:
        gone = PeerAddress(f"127.0.0.1:{unused.getsockname()[1]}", b"")
    with closing(PeerSource({"n": gone}.get, transport := Counting())) as source:
        for _ in range(2):
            with pytest.raises(Unavailable):
                source.connect("n")
        assert (transport.made, source.counts["failed_requests"]) == (1, 1)
