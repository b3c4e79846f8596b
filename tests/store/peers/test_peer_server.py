"""A server of blocks whose readers are strangers, slow, too many, or liars themselves; and servers that lie."""

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.store.arena.layout import (
    GENERATION_BYTES,
    REGION_HEADER,
    REGION_MAGIC,
    SLOT_BYTES,
    RegionLayout,
    SlotHeader,
)
from pbkv_cluster.store.arena.layout import VERSION as LAYOUT_VERSION
from pbkv_cluster.store.arena.slots import ReadResult, SlotReader
from pbkv_cluster.store.peers import handshake
from pbkv_cluster.store.peers.server import Limits, PeerServer
from pbkv_cluster.store.peers.stream import Stream
from pbkv_cluster.store.peers.tcp import TcpConnection
from pbkv_cluster.store.peers.transport import PeerAddress
from pbkv_cluster.store.peers.wire import OK, REQUEST, STATUS, VERSION, Malformed, RequestSize
from tests.certificates import Authority
from tests.polling import wait_for
from tests.store.arena.blocks import MODEL, label, mapped, payload
from tests.store.peers.node import BYTES, LAYOUT, TOKEN, Node, reading, room, serving, stranger, wanted

READ = ReadResult.READ


def is_closed(stream: Stream) -> bool:
    try:
        stream.receive(1)
    except ConnectionError:
        return True
    return False


def still_serves(node: Node) -> bool:
    with reading({"n": node.peer}) as source:
        return source.read(wanted([1]), room(1)) == [READ]


# --- who may read ---


def test_who_does_not_know_the_token_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as node:
        with pytest.raises(Unavailable, match="the connection was closed"):
            TcpConnection(PeerAddress(node.peer.address, b"another token"), 30.0)
        wait_for(lambda: "does not know the token" in caplog.text)
        assert still_serves(node)
        assert TOKEN.hex() not in repr(node.peer)


def test_a_process_that_has_taken_a_server_s_address_is_not_believed() -> None:
    def pretend(listening: socket.socket) -> None:
        stream = Stream(listening.accept()[0], 30.0)
        stream.send(handshake.HELLO.pack(handshake.MAGIC, VERSION, 1, bytes(32)))
        stream.receive(handshake.PROOF.size)  # accepts every reader, and can prove nothing
        stream.send(bytes(32))
        stream.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=pretend, args=(listening,))
        thread.start()
        with pytest.raises(Unavailable, match="another process has taken its address"):
            TcpConnection(PeerAddress(f"127.0.0.1:{listening.getsockname()[1]}", TOKEN), 30.0)
        thread.join()


@pytest.mark.parametrize(
    ("hello", "problem"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian, and so on and so on", "does not serve blocks"),
        (handshake.HELLO.pack(handshake.MAGIC, 7, 1, bytes(32)), "in version 7, and this program reads version 1"),
    ],
)
def test_other_servers_and_other_versions_are_named(hello: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: listening.accept()[0].sendall(hello))
        thread.start()
        with pytest.raises(Unavailable, match=problem):
            TcpConnection(PeerAddress(f"127.0.0.1:{listening.getsockname()[1]}", TOKEN), 30.0)
        thread.join()


def test_another_version_of_a_reader_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as node, stranger(node.peer, greeting=False) as stream:
        stream.receive(handshake.HELLO.size)
        stream.send(handshake.PROOF.pack(handshake.MAGIC, 2, bytes(32), bytes(32)))
        assert is_closed(stream)
        wait_for(lambda: "it is no reader of version 1" in caplog.text)


def certified(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """What a node shows, and the certificate that whoever trusts it knows."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=node", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True)
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(certificate, key)
    return own, certificate


def test_tls_is_used_by_both_or_by_none(tmp_path: Path) -> None:
    own, certificate = certified(tmp_path)
    trusts = ssl.create_default_context(cafile=str(certificate))
    with serving(tls=own) as node, reading({"n": node.peer}, tls=trusts) as source:
        targets = room(LAYOUT.slots)
        assert source.read(wanted(range(LAYOUT.slots)), targets) == [READ] * LAYOUT.slots
        assert all((target == payload(number, BYTES)).all() for number, target in enumerate(targets))
        for other in (None, ssl.create_default_context()):  # which trusts only public authorities
            with pytest.raises(Unavailable, match="no blocks can be read from"):
                TcpConnection(node.peer, 1.0, other)
        assert source.read(wanted([1]), room(1)) == [READ]


def test_readers_show_certificates_too_and_names_stand_for_addresses(tmp_path: Path) -> None:
    member = Authority(tmp_path).sign("member", "DNS:pbkv.internal")
    stranger = Authority(tmp_path, "other").sign("stranger")
    ours = Tls(member.certificate, member.key, member.ca)
    with serving(tls=ours.server_context(mutual=True)) as node:
        named = PeerAddress(node.peer.address, node.peer.token, "pbkv.internal")
        with reading({"n": named}, tls=ours.client_context()) as source:
            assert source.read(wanted([1]), room(1)) == [READ]
        for peer, tls in (
            (node.peer, ours),  # its address is not in the certificate
            (named, Tls(ca=member.ca)),
            (named, Tls(stranger.certificate, stranger.key, member.ca)),
        ):
            with pytest.raises(Unavailable, match="no blocks can be read from"):
                TcpConnection(peer, 5.0, tls.client_context())


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


# --- servers that lie ---

Lie = Callable[[bytes, bytes], tuple[bytes, bytes]]


def _other_bytes(header: bytes, block: bytes) -> tuple[bytes, bytes]:
    return header, b"\7" * len(block)


def _other_block(header: bytes, block: bytes) -> tuple[bytes, bytes]:
    found = SlotHeader.unpack(header[GENERATION_BYTES:])
    assert found is not None
    return (header[:GENERATION_BYTES] + found._replace(label=label(5)).pack()).ljust(SLOT_BYTES, b"\0"), block


def _no_header(header: bytes, block: bytes) -> tuple[bytes, bytes]:
    return b"\1" * SLOT_BYTES, block


@pytest.mark.parametrize("lie", [_other_bytes, _other_block, _no_header])
def test_a_server_that_lies_is_not_believed(lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as node:
        honest_header, honest_payload = SlotReader.packed_header, SlotReader.payload

        def both(reader: SlotReader, slot: int) -> tuple[bytes, bytes]:
            header = honest_header(reader, slot, label(slot).key)
            assert header is not None
            return lie(header, bytes(honest_payload(reader, slot)))

        monkeypatch.setattr(SlotReader, "packed_header", lambda reader, slot, key: both(reader, slot)[0])
        monkeypatch.setattr(SlotReader, "payload", lambda reader, slot: memoryview(both(reader, slot)[1]))
        with reading({"n": node.peer}) as source:
            results = source.read(wanted([0, 1]), room(2))
            assert set(results) <= {ReadResult.DAMAGED, ReadResult.OVERWRITTEN}
            assert source.counts.total() == 2


def test_an_answer_that_is_none_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as node, reading({"n": node.peer}) as source:
        monkeypatch.setattr("pbkv_cluster.store.peers.server.OK", 77)
        with pytest.raises(Unavailable, match="answers what is no answer"):
            source.read(wanted([1]), room(1))


def test_a_server_that_sends_each_block_just_in_time_is_not_waited_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    never, honest = threading.Event(), SlotReader.payload

    def late(reader: SlotReader, slot: int) -> memoryview:
        never.wait(0.4)
        return honest(reader, slot)

    monkeypatch.setattr(SlotReader, "payload", late)
    with serving() as node, reading({"n": node.peer}, timeout_s=0.6) as source:
        with pytest.raises(Unavailable, match="does not send blocks within"):
            source.read(wanted(range(LAYOUT.slots)), room(LAYOUT.slots))
        never.set()
