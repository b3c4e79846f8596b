"""Where the other nodes of the cluster serve their blocks, as the directory says."""

import asyncio
import logging
from collections.abc import Mapping

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory
from pbkv_cluster.store.peers.transport import PeerAddress

log = logging.getLogger(__name__)


class PeerAddresses:
    """Read again as often as members renew their entries; `find` may be called by any thread."""

    def __init__(self, directory: Directory, name: str = "") -> None:
        """Args:
        directory: of the cluster.
        name: in the certificates of the servers; empty: the host of each one's address.
        """
        self._directory = directory
        self._name = name
        self._found: Mapping[str, PeerAddress] = {}  # by node; replaced as a whole
        self._background = Background()

    def find(self, node: str) -> PeerAddress | None:
        """The address of a node's server; None if the directory has none."""
        return self._found.get(node)

    def start(self) -> None:
        """Reads them from now on."""
        self._background.start(self._watch(), "peer addresses")

    async def wait(self) -> None:
        """Runs until that fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()

    async def _watch(self) -> None:
        while True:
            try:
                nodes = await self._directory.nodes()
                self._found = {
                    node.node_id: PeerAddress(node.peer_address, bytes.fromhex(node.peer_token), self._name) for node in nodes
                }
            except Unavailable as error:  # those of before stay; a server that has gone does not answer
                log.debug("the addresses of other nodes cannot be read: %s", error)
            await asyncio.sleep(self._directory.renewal_interval_s)
