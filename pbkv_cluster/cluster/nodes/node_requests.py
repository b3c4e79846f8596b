"""What operators ask of nodes, by way of the directory."""

from pbkv_cluster.cluster.membership.blocking_directory import BlockingDirectory
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, NodeRequest


class NodeRequests:
    """Reads and takes the requests in the directory, for a caller that is not asynchronous."""

    def __init__(self, redis_url: str, cluster: str, ttl_s: float) -> None:
        self._directory = BlockingDirectory(redis_url, cluster, ttl_s)

    def take(self) -> list[NodeRequest]:
        """The new ones; none while Redis is away."""
        try:
            return self._directory.call(Directory.take_node_requests)
        except Unavailable:
            return []

    def close(self) -> None:
        """Ends the connection."""
        self._directory.close()
