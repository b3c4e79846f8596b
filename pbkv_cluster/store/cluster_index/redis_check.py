"""Whether a Redis server that somebody else runs can hold the cluster's state: checked before anything is started."""

import socket
import uuid
from typing import Any

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.urls import without_credentials
from pbkv_cluster.store.cluster_index.client import key_prefix

TIMEOUT_S = 0.8  # of each operation: a server that is this slow would slow down every step
_PROBE_MS = 1000
# A script that writes, as members do: a user who may not run it cannot serve.
_PROBE = "redis.call('SET', KEYS[1], '', 'PX', ARGV[1]) return redis.call('UNLINK', KEYS[1])"


def check_redis(url: str, cluster: str = "") -> None:
    """Checks that a server answers at `url`, lets us in, and is of a kind that members can use.

    Args:
        url: of the server.
        cluster: name of the cluster, under whose prefix a key is written; empty: nothing is written.

    Raises:
        StartupError: it does not; names redis.url, without the password.
    """
    shown = without_credentials(url)
    timeout = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    try:
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **timeout) as client:
            _check_access(client, shown)
            _check_kind(client, shown)
            if cluster:
                _check_writes(client, shown, cluster)
    except (redis.RedisError, OSError) as error:
        raise StartupError(f"redis.url: no Redis server answers at {shown}: {error or type(error).__name__}") from None
    except ValueError:  # its message may quote the password
        raise StartupError(f"redis.url: no Redis server answers at {shown}: it is no URL of one") from None


def _check_access(client: "redis.Redis", shown: str) -> None:
    try:
        client.ping()
    except redis.exceptions.AuthenticationError as error:
        if not client.connection_pool.connection_kwargs.get("password"):
            raise StartupError(f"redis.url: Redis at {shown} wants a password, and the URL has none") from None
        raise StartupError(f"redis.url: Redis at {shown} refuses the user or the password: {error}") from None
    except redis.exceptions.BusyLoadingError:
        raise StartupError(f"redis.url: Redis at {shown} is still loading its data; try again later") from None


def _check_kind(client: "redis.Redis", shown: str) -> None:
    try:
        facts: dict[str, Any] = dict(client.info("server")) | dict(client.info("replication")) | dict(client.info("cluster"))
    except redis.exceptions.ResponseError:
        return  # INFO is forbidden to this user; writing shows whether the server can be used
    mode = facts.get("redis_mode")
    if mode == "cluster" or facts.get("cluster_enabled"):
        raise StartupError(
            f"redis.url: Redis at {shown} runs in cluster mode, which is not supported: name a server with cluster-enabled no"
        )
    if mode == "sentinel":
        raise StartupError(f"redis.url: {shown} is a Redis sentinel, which holds no data: name the master that it watches")
    if facts.get("role") in ("slave", "replica"):
        master = f"{facts.get('master_host')}:{facts.get('master_port')}"
        raise StartupError(f"redis.url: Redis at {shown} is a replica, which cannot be written to: name its master, {master}")


def _check_writes(client: "redis.Redis", shown: str, cluster: str) -> None:
    key = f"{key_prefix(cluster)}probe:{socket.gethostname()}:{uuid.uuid4().hex}"
    try:
        client.eval(_PROBE, 1, key, str(_PROBE_MS))
    except redis.exceptions.ResponseError as error:
        raise StartupError(f"redis.url: Redis at {shown} cannot be written to: {error}") from None
