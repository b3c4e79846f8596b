"""Whether a Redis that somebody else runs can hold the cluster's state: checked before anything is started."""

import asyncio
import socket
import uuid
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.locations.urls import without_credentials
from pbkv_cluster.store.cluster_index.client import connect, key_prefix

TIMEOUT_S = 0.8  # of each operation: a server that is this slow would slow down every step
_PROBE_MS = 1000
# A script that writes, as members do: a user who may not run it cannot serve.
_PROBE = "redis.call('SET', KEYS[1], '', 'PX', ARGV[1]) return redis.call('UNLINK', KEYS[1])"


def check_redis(url: str, cluster: str = "") -> None:
    """Checks that a server answers at `url`, lets us in, and is of a kind that members can use. Not within an event loop.

    Args:
        url: of the server, of its Sentinels, or of nodes of a Redis Cluster.
        cluster: name of the cluster, under whose prefix a key is written; empty: nothing is written.

    Raises:
        StartupError: it does not; names redis.url, without the password.
    """
    shown = without_credentials(url)
    try:
        asyncio.run(_check(url, shown, cluster))
    except (redis.exceptions.RedisError, OSError) as error:
        raise StartupError(f"redis.url: no Redis server answers at {shown}: {error or type(error).__name__}") from None
    except InvalidArgument as error:
        raise StartupError(f"redis.url: no Redis server answers at {shown}: {error.problem}") from None
    except ValueError:  # a message may quote the password
        raise StartupError(f"redis.url: no Redis server answers at {shown}: it is no URL of one") from None


async def _check(url: str, shown: str, cluster: str) -> None:
    client = connect(url, cluster, timeout_s=TIMEOUT_S)
    try:
        await _check_access(client, shown)
        await _check_kind(client, shown, "+cluster:" in url)
        if cluster:
            await _check_writes(client, shown, cluster)
    finally:
        await client.aclose()


async def _check_access(client: Redis, shown: str) -> None:
    try:
        await client.ping()
    except redis.exceptions.AuthenticationError as error:
        if not client.connection_pool.connection_kwargs.get("password"):
            raise StartupError(f"redis.url: Redis at {shown} wants a password, and the URL has none") from None
        raise StartupError(f"redis.url: Redis at {shown} refuses the user or the password: {error}") from None
    except redis.exceptions.BusyLoadingError:
        raise StartupError(f"redis.url: Redis at {shown} is still loading its data; try again later") from None


async def _check_kind(client: Redis, shown: str, cluster_mode: bool) -> None:
    facts: dict[str, Any] = {}
    try:
        for section in ("server", "replication", "cluster"):
            facts |= await client.info(section)
    except redis.exceptions.ResponseError:
        return  # INFO is forbidden to this user; writing shows whether the server can be used
    mode = facts.get("redis_mode")
    if not cluster_mode and (mode == "cluster" or facts.get("cluster_enabled")):
        raise StartupError(f"redis.url: Redis at {shown} runs in cluster mode: write redis+cluster:// in place of redis://")
    if mode == "sentinel":
        raise StartupError(
            f"redis.url: {shown} is a Redis Sentinel, which holds no data: write redis+sentinel://HOST:PORT/NAME, with the "
            "name of the primary that it watches"
        )
    if facts.get("role") in ("slave", "replica"):
        master = f"{facts.get('master_host')}:{facts.get('master_port')}"
        raise StartupError(f"redis.url: Redis at {shown} is a replica, which cannot be written to: name its master, {master}")


async def _check_writes(client: Redis, shown: str, cluster: str) -> None:
    key = f"{key_prefix(cluster)}probe:{socket.gethostname()}:{uuid.uuid4().hex}"
    try:
        await client.eval(_PROBE, 1, key, str(_PROBE_MS))
    except redis.exceptions.ResponseError as error:
        raise StartupError(f"redis.url: Redis at {shown} cannot be written to: {error}") from None
