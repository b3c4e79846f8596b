"""Asks all gateways at once, for what operators want to see of the whole cluster."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pbkv_cluster.core.errors import PbkvError, Unavailable
from pbkv_cluster.gateway.peers.link import PeerLink, PeerLost
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.store.cluster_index import Directory, GatewayEntry

T = TypeVar("T")

TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Everywhere:
    """The gateways that the directory names."""

    directory: Directory
    peers: Peers

    async def gateways(self) -> list[GatewayEntry]:
        """By name; none while the directory is away."""
        try:
            return await self.directory.gateways()
        except Unavailable:
            return []

    def is_me(self, gateway: GatewayEntry) -> bool:
        """Whether an entry is this gateway's own."""
        return gateway.incarnation == self.peers.incarnation

    async def ask(self, call: Callable[[PeerLink], Awaitable[T]]) -> Mapping[str, T]:
        """The answers of the other gateways by their names; those that do not answer are left out.

        Args:
            call: asks one of them, and does so within `TIMEOUT_S` seconds.
        """
        others = [gateway for gateway in await self.gateways() if not self.is_me(gateway)]
        answers = await asyncio.gather(*(self._ask(gateway, call) for gateway in others))
        return {each.name: answer for each, answer in zip(others, answers, strict=True) if answer is not None}

    async def _ask(self, gateway: GatewayEntry, call: Callable[[PeerLink], Awaitable[T]]) -> T | None:
        link = await self.peers.link(gateway.incarnation, gateway.address)
        try:
            return await call(link)
        except (PbkvError, PeerLost):
            return None
