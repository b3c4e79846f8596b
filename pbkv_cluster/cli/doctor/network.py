"""Ports of this machine, the Redis that a configuration names, and the clock."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pbkv_cluster.cli.doctor.finding import Finding, error, ok, warning
from pbkv_cluster.cli.extras import is_installed
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.core.locations.urls import without_credentials

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config

_OLDEST_REDIS = (6, 2)
_EVICTING = "noeviction"  # the one policy that does not
_MEMORY_SHARE = 0.8  # of maxmemory
_CLOCK_S = 2.0  # that two machines may differ by


def check_ports(config: "Config") -> Iterator[Finding]:
    """Whether the configured ports can be bound."""
    from pbkv_cluster.cluster.startup.ports import port_problems, ports
    from pbkv_cluster.cluster.startup.run_record import running

    problems = list(port_problems(config))
    clusters = [each.name for each in running()]
    for port, problem in problems:
        if clusters:
            here = f"{problem}; cluster {', '.join(clusters)} runs here"
            yield warning("ports", here, f"for a second cluster, set {port.field} to a free port, or to 0")
        else:
            yield error("ports", problem, f"set {port.field} to a free port, or to 0 for any")
    if not problems:
        named = [f"{port.field} {port.number}" for port in ports(config) if port.number]
        yield ok("ports", f"free: {', '.join(named) or 'any will do'}")


def check_redis(config: "Config") -> Iterator[Finding]:
    """The Redis of the configuration, or whether one can be started."""
    if not is_installed("redis"):
        yield warning("redis", "not looked at: the client is not installed", install_command("server"))
        return
    from pbkv_cluster.store.cluster_index import redis_check, redis_server

    url = config.redis.url
    if not url:
        try:
            yield ok("redis", f"redis.url is empty: {redis_server.find_binary()} is started for the cluster")
        except StartupError as problem:
            yield error("redis", str(problem), "install redis-server, or set redis.url")
        return
    try:
        redis_check.check_redis(url)
    except StartupError as problem:
        yield error("redis", str(problem), "start it, or correct redis.url")
        return
    from redis.exceptions import RedisError

    shown = without_credentials(url)
    try:
        facts, moved_s = asyncio.run(_facts(url, config.cluster.name))
    except (RedisError, OSError) as problem:
        lost = f"{shown} has answered, and does no more: {problem or type(problem).__name__}"
        yield error("redis", lost, "look at its log, and at the network to it")
        return
    yield from redis_findings(facts, shown)
    yield clock_finding(moved_s, shown)


async def _facts(url: str, cluster: str) -> tuple[Mapping[str, Any], float | None]:
    """What a server tells of itself, and by how many seconds its clock is ahead of ours; None: it may not tell."""
    from redis.exceptions import ResponseError

    from pbkv_cluster.store.cluster_index import connect

    facts: dict[str, Any] = {}
    client = connect(url, cluster, timeout_s=2.0)
    try:
        for section in ("server", "memory"):
            try:
                facts |= dict(await client.info(section))
            except ResponseError:  # INFO is forbidden to this user; what is not known is not judged
                facts["redis_version"] = ""
        before = time.time()
        try:
            seconds, micros = await client.time()
        except ResponseError:  # TIME is forbidden to this user
            return facts, None
        return facts, seconds + micros / 1e6 - (before + time.time()) / 2
    finally:
        await client.aclose()


def redis_findings(facts: Mapping[str, Any], shown: str) -> Iterator[Finding]:
    """Judges what a Redis server tells of itself.

    Args:
        facts: of `INFO server` and `INFO memory`.
        shown: its URL, without a password.
    """
    version = str(facts.get("redis_version") or "")
    if not version:
        yield warning("redis", f"{shown} answers, but tells nothing of itself", "allow the user INFO")
        return
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_REDIS:
        yield error("redis", f"Redis {version} at {shown} is too old", "use Redis 6.2 or later")
    else:
        yield ok("redis", f"Redis {version} at {shown}")
    most, used, policy = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0)), facts.get("maxmemory_policy")
    if not most:
        yield ok("redis memory", f"{used >> 20:,} MiB used, without a limit")
    elif policy != _EVICTING:
        yield error(
            "redis memory",
            f"maxmemory-policy is {policy}: Redis may drop entries of the index without telling anybody",
            "CONFIG SET maxmemory-policy noeviction",
        )
    elif used > _MEMORY_SHARE * most:
        yield warning(
            "redis memory", f"{used >> 20:,} of {most >> 20:,} MiB are used", "raise maxmemory: an entry takes up to 300 bytes"
        )
    else:
        yield ok("redis memory", f"{used >> 20:,} of {most >> 20:,} MiB used, policy {policy}")


def clock_finding(moved_s: float | None, shown: str) -> Finding:
    """`moved_s` is by how many seconds Redis's clock is ahead of this machine's; None: unknown."""
    if moved_s is None:
        return warning("clock", f"Redis at {shown} does not tell the time", "allow the user TIME")
    said = f"{abs(moved_s):.2f} s {'behind' if moved_s > 0 else 'ahead of'} that of Redis at {shown}"
    if abs(moved_s) <= _CLOCK_S:
        return ok("clock", said)
    return warning("clock", f"{said}: times in events and logs will not fit", "let chrony or systemd-timesyncd set both clocks")
