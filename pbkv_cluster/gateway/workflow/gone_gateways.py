"""Takes over the workflows of gateways that are gone for good: nobody may call them any more, and their leases are to end."""

import asyncio
from collections.abc import Set as AbstractSet

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.gateway.workflow.lifecycle import WorkflowLifecycle
from pbkv_cluster.store.cluster_index import Directory

_Incarnations = AbstractSet[str]


class GoneGateways:
    """Looks whether a gateway has vanished from the directory, where its entry has expired.

    A directory that comes back empty is given workflows sooner than the gateways that hold them. So one is gone only if two
    looks have missed it, between which it would have announced itself several times.
    """

    def __init__(self, directory: Directory, peers: Peers, lifecycle: WorkflowLifecycle) -> None:
        """Args:
        directory: that of the cluster.
        peers: know which gateway this is.
        lifecycle: takes workflows over.
        """
        self._directory = directory
        self._peers = peers
        self._lifecycle = lifecycle
        self._seen: _Incarnations | None = None  # at the last look
        self._serving: _Incarnations | None = None  # at that look or the one before; None: there was none before

    async def run(self) -> None:
        """Looks now and then, for ever. The first time after all gateways have had the time to announce themselves."""
        while True:
            await asyncio.sleep(self._directory.ttl_s)
            await self.look()

    async def look(self) -> None:
        """Looks once."""
        try:
            seen = {gateway.incarnation for gateway in await self._directory.gateways()}
        except Unavailable:
            return
        if self._seen is not None:
            serving = seen | self._seen
            if self._serving is None or self._serving - serving:
                await self._take_from_all_but(serving | {self._peers.incarnation})
            self._serving = serving
        self._seen = seen

    async def _take_from_all_but(self, serving: _Incarnations) -> None:
        await self._lifecycle.take_over_all(lambda holder: holder.incarnation not in serving)
