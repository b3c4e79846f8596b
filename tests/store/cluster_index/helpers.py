"""What the tests of the index share."""

from collections.abc import Mapping, Set

import redis
from redis.asyncio import Redis

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import RedisServer, WorkerEntry
from pbkv_cluster.store.cluster_index.client import redis_errors

NAMESPACE = Namespace(model="toy", revision="r1", dtype="float32", layout="paged", salt="acme")


def worker_entry(worker_id: str = "worker-0", incarnation: str = "one") -> WorkerEntry:
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


def process_id(server: RedisServer) -> int:
    """Process id of the server, from its own INFO."""
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("server")["process_id"])


def port_of(server: RedisServer) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


def packed(blocks: Mapping[bytes, Set[Tier]]) -> dict[bytes, int]:
    """Blocks and the tiers that hold them, as they are entered in the index."""
    return {key: Residency(frozenset(tiers)).pack() for key, tiers in blocks.items()}


async def kept(client: Redis) -> list[bytes]:
    """What is in Redis, but for the change stream, which ends a while after the last change."""
    return [key async for key in client.scan_iter() if not key.endswith(b":changes")]


async def stored_blocks(client: Redis, worker_id: str, incarnation: str) -> int:
    """Number of blocks of a worker that are in Redis, from the hash itself; the other fields tell of the latest change."""
    with redis_errors():
        fields = await client.hkeys(f"pbkv:{{test}}:blocks:{worker_id}:{incarnation}")
    return sum(1 for field in fields if field not in (b"", b"id"))
