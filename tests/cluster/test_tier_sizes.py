"""What a start says of the tiers' sizes."""

import asyncio
from dataclasses import replace

import pytest

from pbkv_cluster.cluster.startup.tier_sizes import tier_sizes
from pbkv_cluster.core.config import load
from pbkv_cluster.store.cluster_index import Directory, RedisServer, connect
from tests.store.cluster_index.helpers import worker_entry


@pytest.mark.parametrize(
    ("configured", "blocks", "why"),
    [
        (-1, 200, ", twice the GPU's"),
        (
            -1,
            50,
            ", all of its part of the node's arena: twice the GPU's does not fit in host_store.memory_share = 0.25 "
            "of the memory and in what memory is free",
        ),
        (-1, 0, ": `pbkv status` has the problem, or there is no room in host_store.memory_share = 0.25 of the memory"),
        (50, 50, ""),
    ],
)
def test_sizes_are_told_with_their_reason(configured: int, blocks: int, why: str) -> None:
    with RedisServer.start() as server:
        config = load(flags={"engine.host_blocks": configured}).config

        async def announce() -> None:
            redis = connect(server.url)
            entry = replace(worker_entry(), gpu_blocks=100, host_blocks=blocks, block_bytes=1 << 24)
            await Directory(redis, config.cluster.name, 60.0).announce_worker(entry)
            await redis.aclose()

        asyncio.run(announce())
        (line,) = tier_sizes(config, server.url)
        told = f"worker-0: GPU tier 100 blocks (1.56 GiB), host tier {blocks} blocks ({blocks / 64:.2f} GiB)"
        assert line.startswith(told + why)
        assert line.endswith(")") or why
    assert tier_sizes(config, server.url) == []
