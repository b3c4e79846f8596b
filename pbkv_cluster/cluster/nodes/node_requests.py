"""What operators ask of nodes, by way of the directory."""

import asyncio

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, NodeRequest, connect


class NodeRequests:
    """Reads and takes the requests in the directory, for a caller that is not asynchronous."""

    def __init__(self, redis_url: str, cluster: str, ttl_s: float) -> None:
        self._redis_url, self._cluster, self._ttl_s = redis_url, cluster, ttl_s

    def take(self) -> list[NodeRequest]:
        """The new ones; none while Redis is away."""
        try:
            return asyncio.run(self._take())
        except Unavailable:
            return []

    async def _take(self) -> list[NodeRequest]:
        redis = connect(self._redis_url, self._cluster)
        try:
            return await Directory(redis, self._cluster, self._ttl_s).take_node_requests()
        finally:
            await redis.aclose()
