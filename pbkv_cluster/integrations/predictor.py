"""Finds the predictor: in a cluster's directory, or at an address that the user gave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pbkv_cluster.core.config import Config
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices, Services
from pbkv_cluster.store.cluster_index import Directory, connect


@asynccontextmanager
async def find_predictor(address: str, config: Config) -> AsyncIterator[Services]:
    """Something that knows where the predictor is.

    Args:
        address: host:port; empty: the directory is asked, and so follows a predictor that moves.
        config: names the cluster and its Redis.
    """
    if address:
        yield FixedServices({PREDICTOR: address})
        return
    redis = connect(config.redis.url)
    try:
        yield Directory(redis, config.cluster.name, config.redis.lease_s)
    finally:
        await redis.aclose()
