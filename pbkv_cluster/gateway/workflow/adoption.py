"""Takes over the workflows of gateways that are gone for good: nobody may call them any more, and their leases are to end."""

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.gateway.workflow.lifecycle import WorkflowLifecycle
from pbkv_cluster.store.cluster_index import Directory


@dataclass(frozen=True, slots=True)
class Adoption:
    """Looks whether a gateway has vanished from the directory, where its entry has expired."""

    directory: Directory
    peers: Peers
    lifecycle: WorkflowLifecycle

    async def run(self) -> None:
        """Looks now and then, for ever. The first time after all gateways have had the time to announce themselves."""
        known: AbstractSet[str] | None = None  # incarnations
        while True:
            await asyncio.sleep(self.directory.ttl_s)
            try:
                present = {gateway.incarnation for gateway in await self.directory.gateways()}
            except Unavailable:
                continue
            if known is None or known - present:
                await self._take_from_all_but(present | {self.peers.incarnation})
            known = present

    async def _take_from_all_but(self, serving: AbstractSet[str]) -> None:
        await self.lifecycle.take_over_all(lambda holder: holder.incarnation not in serving)
