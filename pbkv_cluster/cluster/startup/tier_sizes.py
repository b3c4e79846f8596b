"""Tells how large the workers' tiers have become, and why, where the configuration leaves that to the machine."""

import asyncio

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import OUR_ENGINE, Directory, WorkerEntry, connect

_GIB = 1 << 30


def tier_sizes(config: Config, redis_url: str) -> list[str]:
    """One line for each worker in the directory; none while Redis is away."""
    try:
        return [_line(config, worker) for worker in asyncio.run(_workers(config, redis_url))]
    except Unavailable:
        return []


def _line(config: Config, worker: WorkerEntry) -> str:
    if worker.engine != OUR_ENGINE:
        size = f" ({worker.gpu_blocks * worker.block_bytes / _GIB:.2f} GiB)" if worker.block_bytes else ""
        return f"{worker.worker_id}: {worker.engine}, GPU tier {worker.gpu_blocks:,} blocks{size}"
    sizes = [(blocks, blocks * worker.block_bytes / _GIB) for blocks in (worker.gpu_blocks, worker.host_blocks)]
    gpu, host = (f"{blocks:,} blocks ({gib:.2f} GiB)" for blocks, gib in sizes)
    line = f"{worker.worker_id}: GPU tier {gpu}, host tier {host}"
    if config.engine.host_blocks < 0 and not worker.host_blocks:
        share = f"host_store.memory_share = {config.host_store.memory_share:g}"
        line += f": `pbkv status` has the problem, or there is no room in {share} of the memory"
    elif config.engine.host_blocks < 0:
        if worker.host_blocks >= 2 * worker.gpu_blocks:
            line += ", twice the GPU's"
        else:
            line += (
                ", all of its part of the node's arena: twice the GPU's does not fit in "
                f"host_store.memory_share = {config.host_store.memory_share:g} of the memory and in what memory is free"
            )
    return line


async def _workers(config: Config, redis_url: str) -> list[WorkerEntry]:
    redis = connect(redis_url, config.cluster.name)
    try:
        return await Directory(redis, config.cluster.name, config.redis.lease_s).workers()
    finally:
        await redis.aclose()
