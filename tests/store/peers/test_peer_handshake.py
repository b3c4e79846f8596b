"""Who may read the blocks of a node, and whose blocks are read: tokens, versions and certificates."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.store.arena.slots import ReadResult
from pbkv_cluster.store.peers import handshake
from pbkv_cluster.store.peers.stream import Stream
from pbkv_cluster.store.peers.tcp import TcpConnection
from pbkv_cluster.store.peers.transport import PeerAddress
from pbkv_cluster.store.peers.wire import VERSION
from tests.certificates import Authority
from tests.polling import wait_for
from tests.store.arena.blocks import payload
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
