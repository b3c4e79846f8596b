"""Which server is the primary for our keys now, asked of those that know.

All keys of one cluster of ours lie in one slot of a Redis Cluster, because the braces in their prefix make it so. One server
has them all there, too, and scripts and transactions over several keys work as they do on a server of its own.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import redis.exceptions
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from pbkv_cluster.core.locations.addresses import Address

FindPrimary = Callable[[], Awaitable[Address]]
"""Where the primary is. Raises redis.exceptions.ConnectionError if nobody knows."""


class SentinelPrimary:
    """The primary of a name that Sentinels watch."""

    def __init__(self, sentinels: Sequence[Address], name: str, connection: Mapping[str, Any]) -> None:
        """Args:
        sentinels: asked in turn, the one that has answered last first.
        name: by which they know the primary.
        connection: arguments of connections to them.
        """
        self._hosts = list(sentinels)
        self._name = name
        self._connection = connection

    async def __call__(self) -> Address:
        return await _ask_each(self._hosts, self._connection, f"primary {self._name!r}", self._ask)

    async def _ask(self, client: Redis, asked: Address) -> Address | None:
        found: Any = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)  # type: ignore[no-untyped-call]
        return None if found is None else Address(_text(found[0]), int(found[1]))


class ClusterPrimary:
    """The primary of the slot that has the keys with a prefix."""

    def __init__(self, nodes: Sequence[Address], prefix: str, connection: Mapping[str, Any]) -> None:
        """Args:
        nodes: of the Redis Cluster, asked in turn, the one that has answered last first.
        prefix: of all keys, with the part in braces that decides their slot.
        connection: arguments of connections to them.
        """
        self._hosts = list(nodes)
        self._slot = key_slot(prefix.encode())
        self._connection = connection

    async def __call__(self) -> Address:
        return await _ask_each(self._hosts, self._connection, f"primary of slot {self._slot}", self._ask)

    async def _ask(self, client: Redis, asked: Address) -> Address | None:
        slots: Any = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        for first, last, (host, port, *_), *_ in slots:  # of each range its primary, then its replicas
            if first <= self._slot <= last:
                return Address(_text(host) or asked.host, int(port))  # empty: the address by which it was reached
        return None


async def _ask_each(
    hosts: list[Address],
    connection: Mapping[str, Any],
    what: str,
    ask: Callable[[Redis, Address], Awaitable[Address | None]],
) -> Address:
    problems = []
    for host in list(hosts):
        try:
            async with Redis(host=host.host, port=host.port, single_connection_client=True, **connection) as client:
                found = await ask(client, host)
        except (redis.exceptions.RedisError, OSError) as error:
            problems.append(f"{host}: {error or type(error).__name__}")
            continue
        if found is not None:
            hosts.remove(host)
            hosts.insert(0, host)
            return found
        problems.append(f"{host} does not know it")
    raise RedisConnectionError(f"the {what} is not known: {'; '.join(problems)}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
