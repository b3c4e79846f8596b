"""A member's metrics say whether it reaches Redis, by the renewal of its own entry."""

import asyncio
import re
import urllib.request

from pbkv_cluster.cluster.membership.metrics_endpoint import MetricsEndpoint
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.store.cluster_index import Directory, RedisServer, connect
from tests.polling import eventually

TTL_S = 0.3


async def nothing(figures: Figures) -> None:
    pass


async def gateways_own(figures: Figures) -> None:
    figures.put(names.REDIS_REACHABLE, 1)


async def reached(address: str) -> list[str]:
    with await asyncio.to_thread(urllib.request.urlopen, f"http://{address}/metrics", timeout=20) as answer:
        return re.findall(r"^pbkv_redis_reachable (\S+)$", answer.read().decode(), re.MULTILINE)


async def test_a_member_tells_whether_redis_is_there() -> None:
    server = RedisServer.resolve("", host="127.0.0.1")
    redis = connect(server.url, "metrics")
    directory = Directory(redis, "metrics", TTL_S)
    worker = MetricsEndpoint(nothing, directory, "worker-0", "worker", "node")
    gateway = MetricsEndpoint(gateways_own, directory, "gateway", "gateway", "node")
    try:
        addresses = [await each.start("127.0.0.1") for each in (worker, gateway)]
        assert [await reached(address) for address in addresses] == [["1.0"], ["1.0"]]
        server.stop()
        await eventually(lambda: reached_is(addresses[0], ["0.0"]))
        assert await reached(addresses[1]) == ["1.0"], "what a member knows itself is not replaced"
    finally:
        server.stop()
        await asyncio.gather(worker.stop(), gateway.stop())
        await redis.aclose()


async def reached_is(address: str, wanted: list[str]) -> bool:
    return await reached(address) == wanted
