"""A stream that is ended by another thread waits for nothing any more."""

import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pbkv_cluster.store.peers.stream import Stream

NEVER_S = 3600.0


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    """A stream, and its other side, which says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as other:
        stream = Stream(listening.accept()[0], NEVER_S)
        yield stream, other
        stream.close()


class EndedMeanwhile(ssl.SSLContext):
    """Of TLS whose stream is ended in the middle of `wrap`: when the old socket is empty, and the new one not yet known."""

    stream: Stream

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*args, **options)
        ending = threading.Thread(target=self.stream.end)
        ending.start()
        ending.join()
        return wrapped


@pytest.mark.timeout(60)
def test_a_stream_that_is_ended_while_it_is_wrapped_does_not_wait_for_the_handshake(pair: tuple[Stream, socket.socket]) -> None:
    stream, _ = pair
    tls = EndedMeanwhile(ssl.PROTOCOL_TLS_SERVER)
    tls.stream = stream
    with pytest.raises(ConnectionError, match="ended"):
        stream.wrap(tls, server_side=True)


@pytest.mark.timeout(60)
def test_a_stream_that_has_been_ended_is_not_wrapped(pair: tuple[Stream, socket.socket]) -> None:
    stream, _ = pair
    stream.end()
    with pytest.raises(OSError, match=r"ended|not connected"):
        stream.wrap(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_side=True)


@pytest.mark.timeout(60)
def test_what_waits_for_a_piece_is_ended(pair: tuple[Stream, socket.socket]) -> None:
    stream, _ = pair
    ending = threading.Timer(0.05, stream.end)
    ending.start()
    with pytest.raises(ConnectionError, match="closed"):
        stream.receive(1)
