"""What metrics cost: the time of a scrape while 10,000 workflows are open, and what is added to a step.

The scrapes are those of a running cluster, of each kind of member. What a step pays is the gateway's adding up, with and
without what only metrics need; all other figures are counted anyway and read at the scrape.
"""

import argparse
import asyncio
import json
import urllib.request
from collections.abc import Callable
from statistics import median
from time import perf_counter

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, running
from benchmarks.timing import in_turn, percentile, seconds
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.usage import HitMeter, Tier, Usage
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.rpc.services import DISCOVERY_PATH, HEAD
from pbkv_cluster.store.cluster_index import Directory
from pbkv_cluster.store.cluster_index import connect as connect_redis

_AT_ONCE = 64  # calls that open workflows
_WITH_STEPS = 10  # one of so many workflows has a step
_STEPS = 2000  # that are added up in one measurement
_SCRAPE_S = 15.0  # between two scrapes of deploy/prometheus.yaml
_SCRAPE_MS = 50.0  # at most, for one
_PROMPT = list(range(1000, 1032))


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    workflows, rounds = (500, 10) if quick else (10_000, 50)
    cluster = running()
    with asyncio.Runner() as runner:
        steps = runner.run(_open_workflows(cluster.gateway, workflows, rounds))
        url = runner.run(_discovery_url(cluster.redis_url))
    figures = [Figure("step of one token, through the gateway, p50", median(steps) * 1e3, "ms")]
    figures += _accounting(median(steps), rounds)
    for group in json.loads(_get(url)):
        name, address = group["labels"]["instance"], group["targets"][0]
        figures += _scrapes(name, f"http://{address}/metrics", rounds)
    figures.append(Figure("discovery, p50", median(seconds(lambda: _get(url)) for _ in range(rounds)) * 1e3, "ms"))
    sizes = f"{workflows:,} open workflows, one of {_WITH_STEPS} with a step; 2 workers with the small model; {rounds} rounds"
    return Report("metrics", sizes, tuple(figures))


def _accounting(step_s: float, rounds: int) -> list[Figure]:
    """What adding up a step costs, with and without what only metrics need."""
    usage = Usage(
        prompt_tokens=4096, available_tokens=4000, captured={Tier.GPU: 4000}, delivered={Tier.GPU: 4000}, computed_tokens=96,
        generated_tokens=200, queue_s=0.1, load_s=0.01, prefill_s=0.3, decode_s=2.0, ttft_s=0.4, total_s=2.5,
    )  # fmt: skip
    plain, meter = HitMeter(), GatewayMeter(CONFIG.metrics.max_workloads)

    def without() -> float:
        return _of_each(lambda: plain.add(usage))

    def with_metrics() -> float:
        return _of_each(lambda: meter.step_finished(usage, "workload", ""))

    found = in_turn(rounds, without=without, with_metrics=with_metrics)
    added = median(after - before for before, after in zip(found["without"], found["with_metrics"], strict=True))
    return [
        Figure("adding a step up, without metrics", median(found["without"]) * 1e6, "µs"),
        Figure("adding a step up, with metrics", median(found["with_metrics"]) * 1e6, "µs"),
        Figure("metrics add to the shortest step", 100 * added / step_s, "%", at_most=1.0),
    ]


def _of_each(add: Callable[[], None]) -> float:
    """Seconds that one of many calls takes."""
    start = perf_counter()
    for _ in range(_STEPS):
        add()
    return (perf_counter() - start) / _STEPS


def _scrapes(name: str, url: str, rounds: int) -> list[Figure]:
    taken = [seconds(lambda: _get(url)) for _ in range(rounds)]
    size = len(_get(url)) / 1024
    return [
        Figure(f"scrape of {name}, p50", median(taken) * 1e3, "ms", at_most=_SCRAPE_MS),
        Figure(f"scrape of {name}, p99", percentile(taken, 0.99) * 1e3, "ms"),
        Figure(f"scrape of {name}, of a core at one each {_SCRAPE_S:g} s, at most", 100 * median(taken) / _SCRAPE_S, "%"),
        Figure(f"scrape of {name}, size", size, "KiB"),
    ]


async def _open_workflows(gateway: str, workflows: int, rounds: int) -> list[float]:
    """Opens them, and runs steps in some. Returns the times of the last steps, run one after the other."""
    free = asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(gateway) as client:

        async def open_one(number: int) -> float:
            async with free:
                workflow = await client.start_workflow(workload=f"workload {number % 100}", lease_s=3600.0)
                if number % _WITH_STEPS:
                    return 0.0
                start = perf_counter()
                await workflow.run(agent=f"agent {number % 5}", prompt=_PROMPT, max_tokens=1)
                return perf_counter() - start

        await asyncio.gather(*map(open_one, range(workflows - rounds)))
        return [await open_one(number * _WITH_STEPS) for number in range(rounds)]


async def _discovery_url(redis_url: str) -> str:
    redis = connect_redis(redis_url)
    try:
        address = await Directory(redis, CONFIG.cluster.name, CONFIG.redis.lease_s).service_address(HEAD)
    finally:
        await redis.aclose()
    return f"http://{address}{DISCOVERY_PATH}"


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())
