"""A member's connection to the cluster's state in Redis."""

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, connect


class RedisConnection:
    """The directory and the block index of a member's cluster."""

    def __init__(self, context: MemberContext) -> None:
        cluster, ttl_s = context.config.cluster.name, context.config.redis.lease_s
        self._redis = connect(context.redis_url, cluster)
        self.directory = Directory(self._redis, cluster, ttl_s)
        self.blocks = BlockIndex(self._redis, cluster, ttl_s)

    async def close(self) -> None:
        await self._redis.aclose()
