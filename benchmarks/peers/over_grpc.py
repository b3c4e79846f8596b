"""A server stream of gRPC, a message for each block, copied to the reader's memory: `over_grpc.py`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, SIZE, serve_reads

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        _serve()
        return
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.over_grpc", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        channel = grpc.insecure_channel(f"127.0.0.1:{server.stdout.readline().strip()}", options=_OPTIONS)
        fetch: Any = channel.unary_stream("/blocks/Fetch")
        target = memoryview(bytearray(SIZE))

        def read() -> float:
            start, filled = time.perf_counter(), 0
            for block in fetch(b"all"):
                target[filled : filled + len(block)] = block
                filled += len(block)
            assert filled == SIZE
            return time.perf_counter() - start

        serve_reads(read)
        channel.close()
        assert server.stdin is not None
        server.stdin.close()


def _serve() -> None:
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(BLOCKS)]

    def fetch(request: bytes, context: Any) -> Iterator[bytes]:
        yield from blocks

    server = grpc.server(ThreadPoolExecutor(2), options=_OPTIONS)
    handlers = grpc.method_handlers_generic_handler("blocks", {"Fetch": grpc.unary_stream_rpc_method_handler(fetch)})
    server.add_generic_rpc_handlers((handlers,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
