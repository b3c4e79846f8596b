"""Where the predictor is: in a cluster's directory, or at an address that the user gave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pbkv_cluster.core.config import Config
from pbkv_cluster.gateway.predictor_feed.feed import PREDICTOR, Services
from pbkv_cluster.store.cluster_index import Directory, ServiceEntry, connect


class FixedPredictor:
    """A directory that knows one address, and knows it for good."""

    def __init__(self, address: str) -> None:
        self._record = ServiceEntry(PREDICTOR, address, 0)

    async def service(self, name: str) -> ServiceEntry | None:
        return self._record if name == PREDICTOR else None


@asynccontextmanager
async def find_predictor(address: str, config: Config) -> AsyncIterator[Services]:
    """What tells where the predictor is.

    Args:
        address: host:port; empty: the directory knows, and hears of it when the predictor moves.
        config: names the cluster and its Redis.
    """
    if address:
        yield FixedPredictor(address)
        return
    redis = connect(config.redis.url)
    try:
        yield Directory(redis, config.cluster.name, config.redis.lease_s)
    finally:
        await redis.aclose()
