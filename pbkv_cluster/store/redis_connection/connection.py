"""Connections to a primary that may move to another server."""

from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import AskError, ClusterDownError, MasterDownError, MovedError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from pbkv_cluster.store.redis_connection.primary import FindPrimary

_NOT_PRIMARY = (ReadOnlyError, MovedError, AskError, ClusterDownError, MasterDownError)


class FollowingConnection(Connection):
    """Looks up the primary whenever it connects.

    An answer that only a server gives that is not, or no longer, the primary becomes a lost connection: the client connects
    again, to the one that is.
    """

    def __init__(self, *, find_primary: FindPrimary, **options: Any) -> None:
        """Args:
        find_primary: looks it up.
        options: of redis-py's connection.
        """
        super().__init__(**options)
        self._find_primary = find_primary

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = await self._find_primary()
        await super().connect_check_health(check_health, retry_socket_connect)

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            # A script that is stopped half-way is told in words alone.
            if not isinstance(error, _NOT_PRIMARY) and "-READONLY" not in str(error):
                raise
            await self.disconnect()
            raise RedisConnectionError(f"{self.host}:{self.port} is not the primary any more ({error})") from error


class FollowingTlsConnection(FollowingConnection, SSLConnection):
    """The same over TLS."""
