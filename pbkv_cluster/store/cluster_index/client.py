"""Clients of Redis, their errors, and how scripts, calls that are to be made once, and times to live are passed to it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from secrets import token_hex
from typing import Any

import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.typing import EncodableT

from pbkv_cluster.core.errors import InvalidArgument, Unavailable
from pbkv_cluster.core.locations.redis_url import RedisKind, RedisUrl, parse_redis_url
from pbkv_cluster.store.redis_connection.connection import FollowingConnection, FollowingTlsConnection
from pbkv_cluster.store.redis_connection.primary import ClusterPrimary, FindPrimary, SentinelPrimary

_KEPT_MS = 60_000  # that the answer to a call is kept; far longer than a client waits before it sends the call again
_ID_BYTES = 16


def connect(url: str, cluster: str = "", *, timeout_s: float = 1.0, max_connections: int = 32) -> Redis:
    """A client of the index; close it with `aclose()`. It connects on first use.

    Args:
        url: of a Redis, as `core.locations.redis_url` has it, e.g. `RedisServer.url`.
        cluster: name of the cluster of ours; where Redis is in cluster mode, it decides which server has the keys.
        timeout_s: seconds after which a server that does not answer counts as lost; also the wait for a free connection.
        max_connections: commands in flight at once; further ones wait.

    Raises:
        InvalidArgument: it is no such URL, or redis-py refuses an option in it.
    """
    parsed = parse_redis_url("redis.url", url)
    try:
        pool = BlockingConnectionPool(
            max_connections=max_connections, timeout=timeout_s, **_options(parsed, cluster, timeout_s)
        )
        pool.connection_class(**pool.connection_kwargs)  # else the first command would be the first to fail
    except (TypeError, ValueError, redis.exceptions.RedisError) as error:
        raise InvalidArgument("redis.url", f"has an option that is unknown, or not for this kind of URL: {error}") from None
    return Redis.from_pool(pool)


def _options(parsed: RedisUrl, cluster: str, timeout_s: float) -> dict[str, Any]:
    """Arguments of a connection."""
    options: dict[str, Any] = {
        **parse_url(parsed.plain),
        "decode_responses": False,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    if parsed.kind is not RedisKind.SERVER:
        uses_tls = options.pop("connection_class", None) is not None
        options["connection_class"] = FollowingTlsConnection if uses_tls else FollowingConnection
        options["find_primary"] = _finder(parsed, cluster, options, uses_tls)
    # One immediate retry, for a connection that died while it was idle. Callers decide how to wait out an outage. So a call may
    # be made twice: the package says what that means for each.
    options["retry"] = Retry(NoBackoff(), 1)
    return options


def _finder(url: RedisUrl, cluster: str, options: Mapping[str, Any], uses_tls: bool) -> FindPrimary:
    """Looks up the primary, over connections like those to the primary."""
    own = {name: value for name, value in options.items() if name not in ("connection_class", "host", "port", "db")}
    connection = {**own, "ssl": uses_tls, "retry": Retry(NoBackoff(), 0)}
    if url.kind is RedisKind.CLUSTER:
        return ClusterPrimary(url.hosts, key_prefix(cluster), connection)
    without_login = {name: value for name, value in connection.items() if name not in ("username", "password")}
    return SentinelPrimary(url.hosts, url.name, {**without_login, **url.sentinel_options})


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns every error of Redis or of the connection to it into `Unavailable`."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        raise Unavailable(f"Redis: {error or type(error).__name__}") from error


def key_prefix(cluster: str) -> str:
    """What the keys of a cluster begin with. The braces keep them all on one server where Redis spreads keys over several."""
    return f"pbkv:{{{cluster}}}:"


@cache
def lua(name: str) -> str:
    """The text of a Lua script of this package."""
    return resources.files(__package__).joinpath(f"{name}.lua").read_text()


class OnceScript:
    """A Lua script whose calls are made once each, though a client sends a call again if its answer is late.

    For scripts whose answer, made twice, would be another one: the answer is kept in Redis for a while.
    """

    def __init__(self, redis: Redis, cluster_prefix: str, name: str) -> None:
        """Args:
        redis: client; the caller closes it.
        cluster_prefix: of all keys, as `key_prefix` has it.
        name: of the script.
        """
        self._prefix = f"{cluster_prefix}answer:"
        self._script = redis.register_script(f"local function call()\n{lua(name)}\nend\n{lua('once')}")

    async def __call__(self, keys: Sequence[str], args: Sequence[EncodableT]) -> Any:
        return await self._script(keys=[*keys, self._prefix + token_hex(_ID_BYTES)], args=[*args, _KEPT_MS])


def ttl_ms(ttl_s: float) -> int:
    """A time to live in whole milliseconds, at least one."""
    return max(1, round(ttl_s * 1000))
