"""Finds the predictor: in a cluster's directory, or at an address that the user gave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import InvalidArgument, Unavailable
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices, Services
from pbkv_cluster.store.cluster_index import Directory, cluster_names, connect


@asynccontextmanager
async def find_predictor(address: str, config: Config) -> AsyncIterator[Services]:
    """Something that knows where the predictor is.

    Args:
        address: host:port; empty: the directory is asked, and so follows a predictor that moves.
        config: names the cluster and its Redis.

    Raises:
        InvalidArgument: Redis knows other clusters, but not this one.
        Unavailable: Redis does not answer, or knows no cluster.
    """
    if address:
        yield FixedServices({PREDICTOR: address})
        return
    redis = connect(config.redis.url, config.cluster.name)
    try:
        directory = Directory(redis, config.cluster.name, config.redis.lease_s)
        if await directory.service_address(PREDICTOR) is None:
            await _check_cluster(redis, config.cluster.name)
        yield directory
    finally:
        await redis.aclose()


async def _check_cluster(redis: Redis, name: str) -> None:
    """A cluster may be without a predictor for a while, but not without any service."""
    found = await cluster_names(redis)
    if not found:
        raise Unavailable("redis.url: this Redis knows no running cluster; start one with `pbkv serve`, or give another Redis")
    if name not in found:
        raise InvalidArgument("cluster.name", f"this Redis knows no cluster {name!r}; it knows {', '.join(found)}")
