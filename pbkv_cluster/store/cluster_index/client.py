"""The one way to talk to Redis: how clients are made, and what its failures become."""

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
        timeout_s: seconds after which a silent server counts as lost; also the wait for a free connection.
        max_connections: commands in flight at once; more wait for their turn.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        decode_responses=False,
        max_connections=max_connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Once, at once, for a connection that has died while idle. Waiting out an outage is the caller's business.
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns whatever Redis or the way to it fails with into `Unavailable`."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        raise Unavailable(f"Redis: {error or type(error).__name__}") from error


def lua(name: str) -> str:
    """The text of a Lua script of this package."""
    return resources.files(__package__).joinpath(f"{name}.lua").read_text()
