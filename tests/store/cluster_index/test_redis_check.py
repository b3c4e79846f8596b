"""Redis servers that cannot hold a cluster's state are refused by name, and their passwords are never shown."""

from collections.abc import Iterator

import pytest
import redis

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.store.cluster_index import RedisServer
from pbkv_cluster.store.cluster_index.redis_check import check_redis
from pbkv_cluster.store.cluster_index.redis_server import free_port


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer.start(password="abc123def") as server:
        yield server


def refusal(url: str) -> str:
    with pytest.raises(StartupError, match=r"^redis\.url: ") as error:
        check_redis(url, "test")
    assert "abc123def" not in str(error.value)
    return str(error.value)


def test_a_usable_server_is_left_as_it_was(server: RedisServer) -> None:
    check_redis(server.url, "test")
    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == []


def test_a_wrong_or_missing_password_is_told(server: RedisServer) -> None:
    right = server.url
    assert "refuses the user or the password" in refusal(right.replace("abc123def", "wrong"))
    assert "wants a password, and the URL has none" in refusal(right.replace(":abc123def@", ""))


def test_a_server_that_does_not_answer_is_told() -> None:
    port = free_port("127.0.0.1")
    assert f"no Redis server answers at redis://***@127.0.0.1:{port}/0" in refusal(f"redis://:abc123def@127.0.0.1:{port}/0")


@pytest.mark.parametrize("url", ["redis://:abc123def@db:99999/0", "redis://:abc/123def@db/0", "http://db", "redis://[::1/0"])
def test_what_is_no_url_is_told(url: str) -> None:
    assert "123def" not in refusal(url)


@pytest.mark.parametrize(
    ("scheme", "option", "named"),
    [
        ("redis", "colour=red", "colour"),
        ("redis", "ssl_ca_certs=ca.pem", "ssl_ca_certs"),
        ("redis+cluster", "ssl_ca_certs=ca.pem", "ssl_ca_certs"),
        ("rediss", "ssl_cert_reqs=perhaps", "perhaps"),
        ("redis", "socket_timeout=soon", "socket_timeout"),
        ("redis", "max_connections=1", "max_connections"),
    ],
)
def test_an_option_that_a_url_cannot_have_is_named(scheme: str, option: str, named: str) -> None:
    url = f"{scheme}://:abc123def@db/0?{option}"
    assert "has an option that is unknown, or not for this kind of URL" in refusal(url)
    assert named in refusal(url)


def test_a_replica_is_refused_and_its_master_named() -> None:
    with RedisServer.start(password="abc123def") as replica, redis.Redis.from_url(replica.url) as client:
        client.replicaof("127.0.0.1", "1")
        assert "is a replica, which cannot be written to: name its master, 127.0.0.1:1" in refusal(replica.url)


def test_a_user_who_may_not_write_is_refused(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser("reader", enabled=True, passwords=["+abc123def"], commands=["+ping", "+info"], keys=["*"])
    url = server.url.replace("://:", "://reader:")
    assert "cannot be written to" in refusal(url)


def test_a_server_on_an_ipv6_host() -> None:
    with RedisServer.start(host="::1", password="abc123def") as server:
        assert "@[::1]:" in server.url
        check_redis(server.url, "test")
