"""URLs of Redis, taken apart."""

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import Address
from pbkv_cluster.core.locations.redis_url import RedisKind, parse_redis_url


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "name", "plain"),
    [
        ("redis://db", RedisKind.SERVER, [("db", 6379)], "", "redis://db:6379/0"),
        ("rediss://me:p%2Fq@[::1]:7/2?x=%20", RedisKind.SERVER, [("::1", 7)], "", "rediss://me:p%2Fq@[::1]:7/2?x=+"),
        ("unix:///run/redis.sock", RedisKind.SERVER, [], "", "unix:///run/redis.sock"),
        ("redis+sentinel://me:p@a,b:7/main/3", RedisKind.SENTINELS, [("a", 26379), ("b", 7)], "main", "redis://me:p@a:26379/3"),
        ("rediss+sentinel://a/my%2Fmain", RedisKind.SENTINELS, [("a", 26379)], "my/main", "rediss://a:26379/0"),
        ("redis+cluster://:p@a:1,[::1]:2", RedisKind.CLUSTER, [("a", 1), ("::1", 2)], "", "redis://:p@a:1/0"),
    ],
)
def test_parts(url: str, kind: RedisKind, hosts: list[tuple[str, int]], name: str, plain: str) -> None:
    found = parse_redis_url("redis.url", url)
    assert (found.kind, list(found.hosts), found.name, found.plain) == (kind, [Address(*host) for host in hosts], name, plain)
    assert "p@" not in repr(found)


def test_sentinels_may_have_a_login_of_their_own() -> None:
    found = parse_redis_url("redis.url", "redis+sentinel://a/main?sentinel_username=u&sentinel_password=p&ssl_ca_certs=f")
    assert found.sentinel_options == {"username": "u", "password": "p"}
    assert found.plain == "redis://a:26379/0?ssl_ca_certs=f"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinel://a:1", "must have the name of the primary after the Sentinels"),
        ("redis+cluster://a:1/3", "must name no database but 0"),
        ("redis://a:1,b:2", "must begin with redis+sentinel:// or redis+cluster://"),
        ("redis+cluster://", "must be redis://"),
        ("unix+sentinel:///run/x/main", "must be redis://"),
    ],
)
def test_what_is_missing_is_named(url: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_redis_url("redis.url", url)
    assert caught.value.problem.startswith(problem)
