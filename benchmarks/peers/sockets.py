"""Plain sockets between two processes, without headers and checksums: `sockets.py sendall|sendfile|asyncio`."""

import asyncio
import mmap
import os
import socket
import sys
import time

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, SIZE, serve_reads


def main() -> None:
    file = os.memfd_create("blocks")
    os.ftruncate(file, SIZE)
    memory = mmap.mmap(file, SIZE)
    memory[:] = b"x" * SIZE
    listening = socket.create_server(("127.0.0.1", 0))
    server = os.fork()
    if not server:
        if sys.argv[1] == "asyncio":
            asyncio.run(_serve_async(listening, memoryview(memory)))
        else:
            _serve(listening, file, memoryview(memory), sys.argv[1])
        os._exit(0)
    connection = socket.create_connection(listening.getsockname())
    target = memoryview(bytearray(SIZE))

    def read() -> float:
        start = time.perf_counter()
        connection.sendall(b"g")
        filled = 0
        while filled < SIZE:
            filled += connection.recv_into(target[filled : (filled // BLOCK_BYTES + 1) * BLOCK_BYTES])
        return time.perf_counter() - start

    serve_reads(read)
    connection.close()
    os.waitpid(server, 0)


def _serve(listening: socket.socket, file: int, memory: memoryview, way: str) -> None:
    connection, _ = listening.accept()
    while connection.recv(1):
        for start in range(0, SIZE, BLOCK_BYTES):
            if way == "sendall":
                connection.sendall(memory[start : start + BLOCK_BYTES])
            else:
                sent = 0
                while sent < BLOCK_BYTES:
                    sent += os.sendfile(connection.fileno(), file, start + sent, BLOCK_BYTES - sent)


async def _serve_async(listening: socket.socket, memory: memoryview) -> None:
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    connection, _ = await loop.sock_accept(listening)
    while await loop.sock_recv(connection, 1):
        for block in range(BLOCKS):
            await loop.sock_sendall(connection, memory[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])


if __name__ == "__main__":
    main()
