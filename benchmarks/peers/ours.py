"""A host store's server of blocks in one process, `PeerSource` in another, with checksums: `ours.py`."""

import mmap
import os
import subprocess
import sys
import time
import uuid

import numpy as np

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, serve_reads
from pbkv_cluster.core.blocks import BlockLabel, chain_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import Bytes, ReadResult, RegionSlots
from pbkv_cluster.store.block_source import BlockPlace
from pbkv_cluster.store.peers.server import PeerServer
from pbkv_cluster.store.peers.source import PeerSource
from pbkv_cluster.store.peers.tcp import TcpTransport
from pbkv_cluster.store.peers.transport import PeerAddress

SPACE, TOKEN = b"the benchmark's ", bytes(32)
LAYOUT = RegionLayout(BLOCKS, BLOCK_BYTES)


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        _serve()
        return
    command = [sys.executable, "-m", "benchmarks.peers.ours", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        peer = PeerAddress(server.stdout.readline().strip(), TOKEN)
        source = PeerSource({"n": peer}.get, TcpTransport())
        wanted = [(_label(block).key, BlockPlace("n", "w", block, Tier.HOST)) for block in range(BLOCKS)]
        targets: list[Bytes] = list(np.ones((BLOCKS, BLOCK_BYTES), np.uint8))

        def read() -> float:
            start = time.perf_counter()
            results = source.read(wanted, targets)
            seconds = time.perf_counter() - start
            assert results == [ReadResult.READ] * BLOCKS
            return seconds

        serve_reads(read)
        source.close()
        assert server.stdin is not None
        server.stdin.close()


def _serve() -> None:
    arena = Arena(uuid.uuid4().hex, LAYOUT.size + (1 << 20), 600.0, SystemClock())
    region = arena.acquire("w", LAYOUT.size)
    file = os.open(arena.path, os.O_RDWR)
    slots = RegionSlots(memoryview(mmap.mmap(file, region.size, offset=region.offset)), LAYOUT, SPACE)
    for block in range(BLOCKS):
        slots.write(block, _label(block), np.full(BLOCK_BYTES, block, np.uint8))
    server = PeerServer(arena.path, TOKEN)
    print(server.start("127.0.0.1"), flush=True)
    sys.stdin.read()
    server.stop()


def _label(block: int) -> BlockLabel:
    tokens = pack([block] * 16)
    return BlockLabel(SPACE, SPACE, chain_keys(SPACE, tokens)[0], tokens)


if __name__ == "__main__":
    main()
