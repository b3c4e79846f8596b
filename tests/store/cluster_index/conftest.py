from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from pbkv_cluster.store.cluster_index import RedisServer, connect


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer.resolve("") as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty server."""
    client = connect(redis_server.url, timeout_s=10.0)  # a busy machine may let it wait
    await client.flushall()
    yield client
    await client.aclose()
