"""Who this gateway is, which other gateways are gone, and links to those that are not."""

import logging
import uuid
from collections import OrderedDict

from pbkv_cluster.core.errors import TryAgain
from pbkv_cluster.gateway.peers.link import PeerLink
from pbkv_cluster.store.cluster_index import Holder

log = logging.getLogger(__name__)

_MAX_LOST = 1024  # incarnations that are remembered
_MAX_LINKS = 64  # more than there are gateways; beyond it, the one that has not been used for longest is closed


class HeldElsewhere(Exception):
    """Another gateway holds the workflow."""

    def __init__(self, holder: Holder, tenant: str) -> None:
        super().__init__(f"{holder.gateway} at {holder.address} holds the workflow")
        self.holder = holder
        self.tenant = tenant  # of the workflow

    def moved(self) -> TryAgain:
        """The error for another gateway, which took this one for the holder."""
        return TryAgain(f"{self}: try again")


class Peers:
    """Links are opened when they are needed."""

    def __init__(self, name: str) -> None:
        """`name` is this gateway's; no other one has it at the same time."""
        self.name = name
        self.incarnation = uuid.uuid4().hex
        self._address = ""
        self._lost: OrderedDict[str, None] = OrderedDict()  # incarnations, oldest first
        self._links: OrderedDict[str, PeerLink] = OrderedDict()  # by incarnation, not used for longest first

    def serve_at(self, address: str) -> None:
        """This gateway serves at that host:port."""
        self._address = address

    @property
    def me(self) -> Holder:
        """This gateway, as a workflow's record names it."""
        return Holder(self.name, self.incarnation, self._address)

    def is_gone(self, holder: Holder) -> bool:
        """Whether a gateway that holds a workflow is known to serve no longer. This one's earlier incarnations are."""
        return holder.gateway == self.name or holder.incarnation in self._lost

    def lose(self, holder: Holder) -> None:
        """A gateway has turned out to be gone. Should it serve nevertheless, it learns from the record what it has lost."""
        if holder.incarnation not in self._lost:
            log.warning("%s at %s is gone: its workflows are taken over when they are called", holder.gateway, holder.address)
        self._lost[holder.incarnation] = None
        if len(self._lost) > _MAX_LOST:
            self._lost.popitem(last=False)

    async def link(self, incarnation: str, address: str) -> PeerLink:
        """Calls to another gateway."""
        link = self._links.get(incarnation)
        if link is None:
            link = self._links[incarnation] = PeerLink(address)
        self._links.move_to_end(incarnation)
        if len(self._links) > _MAX_LINKS:
            await self._links.popitem(last=False)[1].close()
        return link

    async def close(self) -> None:
        while self._links:
            await self._links.popitem()[1].close()
