"""Clients of Redis, their errors, and how scripts and times to live are passed to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pbkv_cluster.core.errors import Unavailable


def connect(url: str, *, timeout_s: float = 1.0, max_connections: int = 32) -> Redis:
    """A client of the index; close it with `aclose()`. It connects on first use.

    Args:
        url: of a Redis server, e.g. `RedisServer.url`.
        timeout_s: seconds after which a server that does not answer counts as lost; also the wait for a free connection.
        max_connections: commands in flight at once; further ones wait.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        decode_responses=False,
        max_connections=max_connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # One immediate retry, for a connection that died while it was idle. Callers decide how to wait out an outage.
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


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


def lua(name: str) -> str:
    """The text of a Lua script of this package."""
    return resources.files(__package__).joinpath(f"{name}.lua").read_text()


def ttl_ms(ttl_s: float) -> int:
    """A time to live in whole milliseconds, at least one."""
    return max(1, round(ttl_s * 1000))
