"""Arrow Flight: a record batch for each block, copied to the reader's memory. `over_flight.py`.

Run by the interpreter of an environment that has pyarrow; nothing of ours is needed there.
"""

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, SIZE, serve_reads


def main() -> None:
    from pyarrow import flight

    if sys.argv[1:] == ["serve"]:
        _serve()
        return
    command = [sys.executable, "-m", "benchmarks.peers.over_flight", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, ExitStack() as stack:
        stack.callback(server.kill)  # its own way to end waits for clients
        assert server.stdout is not None
        client = flight.connect(f"grpc://127.0.0.1:{server.stdout.readline().strip()}")
        target = memoryview(bytearray(SIZE))

        def read() -> float:
            start, filled = time.perf_counter(), 0
            for chunk in client.do_get(flight.Ticket(b"all")):
                block = memoryview(chunk.data.column(0).buffers()[1]).cast("B")[:BLOCK_BYTES]
                target[filled : filled + BLOCK_BYTES] = block
                filled += BLOCK_BYTES
            assert filled == SIZE
            return time.perf_counter() - start

        serve_reads(read)
        client.close()


def _serve() -> None:
    import pyarrow
    from pyarrow import flight

    batches = [
        pyarrow.record_batch([pyarrow.array(memoryview(bytes([block]) * BLOCK_BYTES), pyarrow.uint8())], ["block"])
        for block in range(BLOCKS)
    ]

    class Server(flight.FlightServerBase):  # type: ignore[misc]
        def do_get(self, context: Any, ticket: Any) -> Any:
            return flight.GeneratorStream(batches[0].schema, iter(batches))

    server = Server("grpc://127.0.0.1:0")
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
