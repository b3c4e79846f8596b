"""What the tests of the index share."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

import redis

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.store.cluster_index import RedisServer, WorkerEntry

DEADLINE_S = 30.0
_POLL_S = 0.01

NAMESPACE = Namespace(model="toy", revision="r1", dtype="float32", layout="paged", salt="acme")


def worker_record(worker_id: str = "worker-0", incarnation: str = "one") -> WorkerEntry:
    return WorkerEntry(
        worker_id=worker_id,
        incarnation=incarnation,
        node_id="node-0",
        address="127.0.0.1:7001",
        pid=4321,
        namespace=NAMESPACE,
        vocab_size=4096,
        max_context_tokens=2048,
        gpu_blocks=100,
        host_blocks=400,
        block_bytes=65536,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {inspect.getsource(condition).strip()}"
        time.sleep(_POLL_S)


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Polls until the condition, which may have to be awaited, holds."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        value = await value if inspect.isawaitable(value) else value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {inspect.getsource(condition).strip()}"
        await asyncio.sleep(_POLL_S)


def process_id(server: RedisServer) -> int:
    """Of the server itself, as it says."""
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("server")["process_id"])
