"""Mooncake Store over TCP: one process holds the blocks, another reads them into a registered buffer. `over_mooncake.py`.

Run by the interpreter of an environment that has a Mooncake package; nothing of ours is needed there.
"""

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, SIZE, serve_reads

KEYS = [f"block-{number}" for number in range(BLOCKS)]
SIZES = [BLOCK_BYTES] * BLOCKS


def main() -> None:
    if sys.argv[1:2] == ["hold"]:
        _hold(sys.argv[2])
        return
    rpc, metrics = _free_port(), _free_port()
    folder = Path(sys.executable).parent
    # Leases and clean-up far apart: nothing is to be evicted while it is measured.
    flags = [f"--rpc_port={rpc}", f"--metrics_port={metrics}", "--default_kv_lease_ttl=3600000"]
    master = subprocess.Popen([folder / "mooncake_master", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    holder = None
    try:
        _wait_for(rpc)
        command = [sys.executable, "-m", "benchmarks.peers.over_mooncake", "hold", str(rpc)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert any(line.strip() == "holding" for line in holder.stdout)
        store, memory, pointers = _client(rpc, segment=0)

        def read() -> float:
            start = time.perf_counter()
            found = store.batch_get_into(KEYS, pointers, SIZES)
            seconds = time.perf_counter() - start
            assert found == SIZES, found
            assert memory[SIZE - BLOCK_BYTES] == BLOCKS
            return seconds

        serve_reads(read)
    finally:
        for process in (holder, master):
            if process is not None:
                process.kill()
                process.wait()
    os._exit(0)  # its threads do not end in good order


def _hold(rpc: str) -> None:
    store, memory, pointers = _client(int(rpc), segment=4 * SIZE)
    for block in range(BLOCKS):
        memory[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes([block + 1]) * BLOCK_BYTES
    found = store.batch_put_from(KEYS, pointers, SIZES)
    assert not any(found), found
    print("holding", flush=True)
    sys.stdin.read()


def _client(rpc: int, segment: int) -> tuple[Any, mmap.mmap, list[int]]:
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup(f"127.0.0.1:{_free_port()}", "P2PHANDSHAKE", segment, 2 * SIZE, "tcp", "", f"127.0.0.1:{rpc}")
    assert status == 0, status
    memory = mmap.mmap(-1, SIZE)
    memory[:] = bytes(SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert store.register_buffer(address, SIZE) == 0
    return store, memory, [address + block * BLOCK_BYTES for block in range(BLOCKS)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("Mooncake's master does not start")


if __name__ == "__main__":
    main()
