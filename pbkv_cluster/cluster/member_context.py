"""What every member of a cluster is told when it starts, and how it finds the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pbkv_cluster.core.config import Config
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, connect


@dataclass(frozen=True, slots=True)
class MemberContext:
    """A cluster as a member sees it."""

    config: Config
    redis_url: str
    host: str  # address that the member binds and advertises
    node_id: str
    state_dir: str = ""  # where what must survive a restart is kept; empty: nowhere


class Member(Protocol):
    """One process of the cluster, as a plain object on an event loop."""

    async def start(self) -> str:
        """Serves, and tells the others where. Returns the address.

        Raises:
            PbkvError: it cannot start; says why.
        """
        ...

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended the member."""
        ...

    async def stop(self) -> None:
        """Ends whatever `start` began, also if it got only half-way."""
        ...


MakeMember = Callable[[MemberContext], Member]


class Index:
    """A member's connection to Redis."""

    def __init__(self, site: MemberContext) -> None:
        settings = site.config.redis
        self._redis = connect(site.redis_url)
        self.directory = Directory(self._redis, site.config.cluster.name, settings.lease_s)
        self.blocks = BlockIndex(self._redis, site.config.cluster.name, settings.lease_s)

    async def close(self) -> None:
        await self._redis.aclose()
