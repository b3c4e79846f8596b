"""A member, one process of the cluster, and what it is told when it starts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pbkv_cluster.core.config import Config


@dataclass(frozen=True, slots=True)
class MemberContext:
    """The cluster, from the point of view of one member."""

    config: Config
    redis_url: str = field(repr=False)  # with the password
    host: str  # address that the member binds and advertises
    node_id: str
    name: str = ""  # of the member
    cluster_key: str = field(default="", repr=False)  # the API key that members show each other
    state_dir: str = ""  # folder for state that must survive a restart; empty: none


class Member(Protocol):
    """One process of the cluster, as a plain object on an event loop."""

    def prepare(self) -> None:
        """Imports and loads what `start` needs, so that it takes less time later in this process; starts nothing.

        A standby calls it, for members that it may come to replace.

        Raises:
            PbkvError: what is needed cannot be loaded; says why.
        """
        ...

    async def start(self) -> str:
        """Serves, and announces the address to the others. Returns it.

        Raises:
            PbkvError: the member cannot start; says why.
        """
        ...

    async def wait(self) -> None:
        """Runs until a part of the member fails, then raises its error."""
        ...

    async def stop(self) -> None:
        """Stops everything that `start` began, even if `start` failed half-way."""
        ...


MakeMember = Callable[[MemberContext], Member]
