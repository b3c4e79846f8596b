"""Nodes whose arenas hold blocks, served to readers in the same process or in another."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import Bytes, ReadResult, RegionSlots
from pbkv_cluster.store.block_source import BlockPlace
from pbkv_cluster.store.peers import handshake
from pbkv_cluster.store.peers.server import PeerServer
from pbkv_cluster.store.peers.source import PeerSource
from pbkv_cluster.store.peers.stream import Stream
from pbkv_cluster.store.peers.tcp import TcpTransport
from pbkv_cluster.store.peers.transport import PeerAddress
from tests.store.arena.blocks import MODEL, label, mapped, payload

BYTES = 4096
LAYOUT = RegionLayout(8, BYTES)
TOKEN = b"a token of 32 bytes, for tests.."

SERVE = """
import sys
from tests.store.peers.node import RegionLayout, serving
with serving(RegionLayout(int(sys.argv[1]), int(sys.argv[2]))) as node:
    print(node.peer.address, node.arena.path, flush=True)
    sys.stdin.read()
"""

OVERWRITE = """
import os, sys
from tests.store.arena.blocks import MODEL, label, mapped, payload
from tests.store.peers.node import RegionLayout, RegionSlots
layout, offset = RegionLayout(int(sys.argv[1]), int(sys.argv[2])), int(sys.argv[4])
file = os.open(sys.argv[3], os.O_RDWR)
slots = RegionSlots(mapped(file, offset, -(-layout.size // 4096) * 4096), layout, MODEL)
payloads = [payload(number, layout.payload_bytes) for number in range(layout.slots * 2)]
print("writing", flush=True)
number = 0
while True:
    for slot in range(layout.slots):
        block = slot + (number % 2) * layout.slots
        slots.write(slot, label(block), payloads[block])
    number += 1
"""


class Node(NamedTuple):
    """An arena with one region, `w`, and its server."""

    arena: Arena
    slots: RegionSlots
    server: PeerServer
    peer: PeerAddress


@contextmanager
def serving(layout: RegionLayout = LAYOUT, blocks: int | None = None, **options: Any) -> Iterator[Node]:
    """A node whose slots hold as many blocks, by default all: in slot n block n. `options` are those of the server."""
    with ExitStack() as stack:
        arena = Arena(uuid.uuid4().hex, 2 * layout.size + (1 << 16), 600.0, SystemClock())
        stack.callback(arena.close)
        region = arena.acquire("w", layout.size)
        file = os.open(arena.path, os.O_RDWR)
        stack.callback(os.close, file)
        slots = RegionSlots(mapped(file, region.offset, region.size), layout, MODEL)
        for number in range(layout.slots if blocks is None else blocks):
            slots.write(number, label(number), payload(number, layout.payload_bytes))
        server = PeerServer(arena.path, TOKEN, **options)
        address = server.start("127.0.0.1")
        stack.callback(server.stop)
        yield Node(arena, slots, server, PeerAddress(address, TOKEN))


class OtherProcess(NamedTuple):
    """A node in another process."""

    process: "subprocess.Popen[str]"
    peer: PeerAddress
    path: Path

    def freeze(self) -> None:
        """Stops all its threads, and returns when they stand."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving_process(layout: RegionLayout) -> Iterator[OtherProcess]:
    arguments = [sys.executable, "-c", SERVE, str(layout.slots), str(layout.payload_bytes)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address, path = process.stdout.readline().split()
        try:
            yield OtherProcess(process, PeerAddress(address, TOKEN), Path(path))
        finally:
            process.kill()


@contextmanager
def overwriting(path: Path, offset: int, layout: RegionLayout) -> Iterator[None]:
    """A process that writes to each slot in turn, again and again, one of two blocks: its own number, or as many after all."""
    arguments = [sys.executable, "-c", OVERWRITE, str(layout.slots), str(layout.payload_bytes), str(path), str(offset)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "writing\n"
            yield
        finally:
            process.kill()


@contextmanager
def reading(peers: Mapping[str, PeerAddress], **options: Any) -> Iterator[PeerSource]:
    source = PeerSource(peers.get, TcpTransport(), **options)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def stranger(peer: PeerAddress, greeting: bool = True) -> Iterator[Stream]:
    """A connection without a reader at its end."""
    stream = Stream(socket.create_connection(parse_address("peer", peer.address)), 30.0)
    try:
        if greeting:
            handshake.greet(stream, peer.token)
        yield stream
    finally:
        stream.close()


def wanted(
    numbers: Sequence[int], node: str = "n", region: str = "w", slots: Sequence[int] | None = None, tier: Tier = Tier.HOST
) -> list[tuple[bytes, BlockPlace]]:
    """Blocks by number, each in the slot of its number unless `slots` says otherwise."""
    places = [BlockPlace(node, region, slot, tier) for slot in (numbers if slots is None else slots)]
    return [(label(number).key, place) for number, place in zip(numbers, places, strict=True)]


def room(blocks: int, size: int = BYTES) -> list[Bytes]:
    return list(np.zeros((blocks, size), np.uint8))


def check(numbers: Sequence[int], results: Sequence[ReadResult], targets: Sequence[Bytes]) -> None:
    """Every block that was read is the one that was wanted, to the byte."""
    for number, result, target in zip(numbers, results, targets, strict=True):
        if result is ReadResult.READ:
            assert (target == payload(number, len(target))).all()


def is_closed(stream: Stream) -> bool:
    try:
        stream.receive(1)
    except ConnectionError:
        return True
    return False


def still_serves(node: Node) -> bool:
    with reading({"n": node.peer}) as source:
        return source.read(wanted([1]), room(1)) == [ReadResult.READ]


def certified(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """What a node shows, and the certificate that whoever trusts it knows."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=node", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True)
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(certificate, key)
    return own, certificate
