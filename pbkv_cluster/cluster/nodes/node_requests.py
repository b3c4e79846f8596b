"""What operators ask of nodes, by way of the directory."""

from collections.abc import Sequence
from contextlib import suppress

from pbkv_cluster.cluster.membership.blocking_directory import BlockingDirectory
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, NodeRequest


class NodeRequests:
    """Reads and withdraws the requests in the directory, for a caller that is not asynchronous.

    A request is there until it has been obeyed and withdrawn, so none is lost with an answer; it may be read several times.
    """

    def __init__(self, redis_url: str, cluster: str, ttl_s: float) -> None:
        self._directory = BlockingDirectory(redis_url, cluster, ttl_s)

    def read(self) -> list[NodeRequest]:
        """All that are there; none while Redis is away."""
        try:
            return self._directory.call(Directory.node_requests)
        except Unavailable:
            return []

    def withdraw(self, obeyed: Sequence[NodeRequest]) -> None:
        """Removes requests. While Redis is away they stay, and are read again."""

        async def withdraw(directory: Directory) -> None:
            for each in obeyed:
                await directory.withdraw_node_request(each)

        if obeyed:
            with suppress(Unavailable):
                self._directory.call(withdraw)

    def close(self) -> None:
        """Ends the connection."""
        self._directory.close()
