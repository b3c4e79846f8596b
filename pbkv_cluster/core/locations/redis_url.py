"""The URL of a Redis: one server, the primary that Sentinels name, or the primary of a Redis Cluster that has our keys.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]                          one server; rediss:// with TLS, unix://PATH by a socket
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT],…/NAME[/DB]          Sentinels, and the name by which they know the primary
    redis+cluster://[[USER]:PASSWORD@]HOST[:PORT],…                     some nodes of a Redis Cluster

With `rediss+sentinel` and `rediss+cluster` all connections use TLS. What follows `?` is given to redis-py, such as
`ssl_ca_certs=FILE`; `sentinel_username` and `sentinel_password` are for the Sentinels alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import Address, check_host

_FORM = (
    "redis://[[USER]:PASSWORD@]HOST:PORT[/DB], rediss://…, unix://PATH, redis+sentinel://HOST:PORT,…/NAME[/DB] or "
    "redis+cluster://HOST:PORT,…"
)
_ESCAPES = "characters such as / # ? @ in a password are written as %2F and so on"
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


class RedisKind(Enum):
    """What the hosts of a URL are."""

    SERVER = "server"
    SENTINELS = "sentinel"
    CLUSTER = "cluster"


_PORTS = {RedisKind.SERVER: 6379, RedisKind.SENTINELS: 26379, RedisKind.CLUSTER: 6379}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a URL that say where its server is found."""

    kind: RedisKind
    hosts: tuple[Address, ...]  # empty: a socket of this machine
    name: str  # of the primary, for Sentinels
    plain: str = field(repr=False)  # the URL as it were if its first host were the server
    sentinel_options: Mapping[str, str] = field(default_factory=dict, repr=False)  # username and password for Sentinels


def parse_redis_url(field_name: str, url: str) -> RedisUrl:
    """Raises:
    InvalidArgument: it is no such URL; says what it must be, and names `field_name`, without quoting the URL.
    """
    try:
        parts = urlsplit(url)
        scheme, plus, kind_name = parts.scheme.partition("+")
        kind = RedisKind(kind_name) if plus else RedisKind.SERVER
    except ValueError:
        raise InvalidArgument(field_name, f"must be {_FORM}") from None
    if scheme not in (("redis", "rediss", "unix") if kind is RedisKind.SERVER else ("redis", "rediss")):
        raise InvalidArgument(field_name, f"must be {_FORM}")
    if "@" in parts.path + parts.fragment:
        raise InvalidArgument(field_name, f"must be {_FORM}; {_ESCAPES}")
    if scheme == "unix":
        if not parts.path:
            raise InvalidArgument(field_name, "must name the socket's path, as in unix:///run/redis.sock")
        return RedisUrl(kind, (), "", url)
    login, at, listed = parts.netloc.rpartition("@")
    hosts = tuple(_host(field_name, text, _PORTS[kind]) for text in listed.split(","))
    if kind is RedisKind.SERVER and len(hosts) > 1:
        raise InvalidArgument(field_name, "must begin with redis+sentinel:// or redis+cluster:// to have several hosts")
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    name = path.pop(0) if kind is RedisKind.SENTINELS and path else ""
    if kind is RedisKind.SENTINELS and not name:
        raise InvalidArgument(
            field_name, "must have the name of the primary after the Sentinels, as in redis+sentinel://h:26379/mymaster"
        )
    if kind is RedisKind.CLUSTER and path and path != ["0"]:
        raise InvalidArgument(field_name, "must name no database but 0, which is the only one of a Redis Cluster")
    if len(path) > 1 or not all(part.isdecimal() for part in path):
        raise InvalidArgument(field_name, f"the database after the slash must be a number, in {_FORM}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for_sentinels = {each.removeprefix("sentinel_"): options.pop(each) for each in _SENTINEL_OPTIONS if each in options}
    query = f"?{urlencode(options)}" if options else ""
    plain = f"{scheme}://{login}{at}{hosts[0]}/{path[0] if path else 0}{query}"
    return RedisUrl(kind, hosts, name, plain, for_sentinels)


def _host(field_name: str, text: str, port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        given = parts.port  # raises for a port that is none
        host = check_host(field_name, parts.hostname or "")
    except (ValueError, InvalidArgument):  # whose message may quote a part of a password
        host, given = "", None
    if not host or given == 0:
        raise InvalidArgument(field_name, f"must be {_FORM}; a port is from 1 to 65535, and {_ESCAPES}")
    return Address(host, given or port)
