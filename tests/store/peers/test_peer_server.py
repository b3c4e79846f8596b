"""A server of blocks whose readers talk nonsense, are slow, or are too many."""

import os
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.store.arena.layout import REGION_HEADER, REGION_MAGIC, RegionLayout
from pbkv_cluster.store.arena.layout import VERSION as LAYOUT_VERSION
from pbkv_cluster.store.arena.slots import ReadResult
from pbkv_cluster.store.peers import handshake
from pbkv_cluster.store.peers.server import Limits, PeerServer
from pbkv_cluster.store.peers.tcp import TcpConnection
from pbkv_cluster.store.peers.wire import OK, REQUEST, STATUS, Malformed, RequestSize
from tests.polling import wait_for
from tests.store.arena.blocks import MODEL, label, mapped
from tests.store.peers.node import (
    BYTES,
    LAYOUT,
    TOKEN,
    certified,
    is_closed,
    reading,
    room,
    serving,
    still_serves,
    stranger,
    wanted,
)

READ = ReadResult.READ


# --- nonsense ---


def test_bytes_that_are_no_request_end_the_connection_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as node:

        @settings(deadline=None, max_examples=60)
        @given(nonsense=st.binary(min_size=REQUEST.size, max_size=300))
        def ends(nonsense: bytes) -> None:
            try:
                size = RequestSize.unpack(nonsense[: REQUEST.size])
            except Malformed:
                with stranger(node.peer) as stream:
                    stream.send(nonsense)
                    assert is_closed(stream)
            else:
                assert size.blocks

        ends()
        wait_for(lambda: "is closed: it names" in caplog.text)
        wait_for(lambda: node.server.connections == 0, why=lambda: "connections leak")
        assert still_serves(node)


def test_bytes_before_the_handshake_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as node, stranger(node.peer, greeting=False) as stream:
        stream.send(b"GET / HTTP/1.1\r\n" * 10)
        stream.receive(handshake.HELLO.size)
        assert is_closed(stream)
        wait_for(lambda: "it is no reader" in caplog.text)


# --- bounds ---


def test_connections_beyond_the_bound_are_refused_at_once_and_welcome_later() -> None:
    with serving(limits=Limits(connections=2)) as node:
        with stranger(node.peer), stranger(node.peer):
            with pytest.raises(Unavailable, match="too many connections"):
                TcpConnection(node.peer, 30.0)
            assert node.server.counts["refused_connections"] == 1
        wait_for(lambda: node.server.connections == 0)
        assert still_serves(node)


def test_bytes_beyond_the_bound_are_refused_at_once() -> None:
    layout = RegionLayout(4, 8 << 20)  # far more than sockets hold
    with serving(layout, limits=Limits(bytes=layout.payload_bytes)) as node, reading({"n": node.peer}) as source:
        with stranger(node.peer) as slow:
            slow.send(REQUEST.pack(1, 1, layout.payload_bytes) + b"w" + label(0).key + bytes(8))
            assert STATUS.unpack(slow.receive(STATUS.size)) == (OK,)
            with pytest.raises(Unavailable, match="serves as many blocks as it can"):
                source.read(wanted([1]), room(1, layout.payload_bytes))
            assert node.server.counts["refused_requests"] == 1
        wait_for(lambda: node.server.bytes_in_flight == 0, why=lambda: "bytes of a reader that has gone are still counted")
        with reading({"n": node.peer}) as another:
            assert another.read(wanted([0, 1]), room(2, layout.payload_bytes)) == [READ, READ], "alone, it may be more"


def test_blocks_of_a_region_with_another_layout_are_absent_and_take_no_room(caplog: pytest.LogCaptureFixture) -> None:
    """As while a node changes to another version of this program."""
    with serving(limits=Limits(bytes=BYTES)) as node, reading({"n": node.peer}) as source:
        region = node.arena.acquire("other", LAYOUT.size)
        file = os.open(node.arena.path, os.O_RDWR)
        header = REGION_HEADER.pack(REGION_MAGIC, LAYOUT_VERSION + 1, LAYOUT.slots, BYTES, MODEL)
        mapped(file, region.offset, region.size)[: len(header)] = header
        os.close(file)
        for _ in range(3):
            assert source.read(wanted([0], region="other"), room(1)) == [ReadResult.ABSENT]
        assert caplog.text.count("blocks of other are not read: a region of the arena has layout version") == 1
        assert source.read(wanted([1]), room(1)) == [READ]
        wait_for(lambda: node.server.bytes_in_flight == 0)


@pytest.mark.parametrize("what", ["silent before the handshake", "silent after it", "does not take its block"])
def test_a_reader_that_stalls_is_let_go(what: str) -> None:
    layout = RegionLayout(1, 32 << 20)
    with serving(layout, limits=Limits(idle_s=0.2, timeout_s=0.2)) as node:
        with stranger(node.peer, greeting=what != "silent before the handshake") as stream:
            if what == "does not take its block":
                stream.send(REQUEST.pack(1, 1, layout.payload_bytes) + b"w" + label(0).key + bytes(8))
            wait_for(lambda: node.server.connections == 0)
        assert node.server.bytes_in_flight == 0


def test_a_stopped_server_ends_its_connections_and_threads() -> None:
    before = {thread.name for thread in threading.enumerate()}
    with serving() as node, stranger(node.peer) as stream:
        node.server.stop()
        assert is_closed(stream)
        assert {thread.name for thread in threading.enumerate()} <= before
        with pytest.raises(Unavailable):
            TcpConnection(node.peer, 1.0)


@pytest.mark.timeout(60)
def test_a_server_stops_at_once_while_a_reader_is_silent_in_the_handshake(tmp_path: Path) -> None:
    own, _ = certified(tmp_path)
    with serving(tls=own, limits=Limits(timeout_s=3600.0)) as node, stranger(node.peer, greeting=False) as stream:
        wait_for(lambda: node.server.connections == 1)
        node.server.stop()
        assert is_closed(stream)


def test_a_server_that_gets_no_more_threads_refuses_and_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as node:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(Unavailable):
                TcpConnection(node.peer, 30.0)
        assert node.server.connections == 0
        assert still_serves(node)


def _no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_memory_stays_flat_however_much_is_served() -> None:
    layout = RegionLayout(16, 1 << 20)
    with serving(layout) as node, reading({"n": node.peer}) as source:
        targets = room(layout.slots, layout.payload_bytes)
        for _ in range(5):
            source.read(wanted(range(layout.slots)), targets)
        before = psutil.Process().memory_info().rss
        for _ in range(50):
            source.read(wanted(range(layout.slots)), targets)
        assert psutil.Process().memory_info().rss - before < 8 << 20, "800 MiB have passed"


def test_a_port_in_use_is_a_startup_error_that_names_its_setting() -> None:
    with serving() as node:
        port = parse_address("peer", node.peer.address).port
        server = PeerServer(node.arena.path, TOKEN)
        with pytest.raises(StartupError, match=r"host_store\.peer_port: cannot listen on 127\.0\.0\.1"):
            server.start("127.0.0.1", port)
        server.stop()
