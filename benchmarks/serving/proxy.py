"""The least that a gateway in Python can cost: a process that passes the bytes of `RunStep` on to workers in turn, and back.

It decodes nothing, chooses nothing and remembers nothing. What it adds to a step is what two calls of grpc.aio add.
"""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import grpc
from grpc import aio

from pbkv_cluster.rpc.channel import CHANNEL_OPTIONS, connect
from pbkv_cluster.rpc.server import SERVER_OPTIONS

_SERVICE = "pbkv.v1.WorkerService"
_START_S = 60.0
_STOP_S = 10.0


class Proxy(NamedTuple):
    """A process that passes steps on."""

    pid: int
    address: str


@contextmanager
def forwarding(workers: Sequence[str]) -> Iterator[Proxy]:
    """A proxy for the workers at these addresses.

    Raises:
        RuntimeError: it does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(list(workers), theirs), name="proxy")
    process.start()
    try:
        if not ours.poll(_START_S):
            raise RuntimeError("the proxy did not start in time")
        yield Proxy(process.pid or 0, ours.recv())
    finally:
        ours.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()


def _run(workers: list[str], pipe: Connection) -> None:
    asyncio.run(_serve(workers, pipe))


async def _serve(workers: list[str], pipe: Connection) -> None:
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(connect(worker, options=CHANNEL_OPTIONS)) for worker in workers]
        calls: Iterator[Any] = cycle(
            [channel.unary_stream(f"/{_SERVICE}/RunStep") for channel in channels]
        )  # bytes in, bytes out

        async def run_step(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async for event in next(calls)(request):
                yield event

        server = aio.server(options=SERVER_OPTIONS)
        handlers: dict[str, Any] = {"RunStep": grpc.unary_stream_rpc_method_handler(run_step)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        await asyncio.to_thread(_until_closed, pipe)
        await server.stop(0)


def _until_closed(pipe: Connection) -> None:
    try:
        pipe.recv()
    except EOFError:
        return
