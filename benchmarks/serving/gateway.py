"""What the gateway adds to a step: the same step by gateway, by a bare proxy, and straight to the worker, in turn.

Gateway, proxy, workers and Redis are processes of their own. There are two workers, so that the gateway has to choose the one
that has the prompt. A step is cheap for the worker: its prompt is cached, and its output is one token.
"""

import argparse
import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter

import psutil

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, Running, running
from benchmarks.serving.proxy import Proxy, forwarding
from benchmarks.timing import percentile
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import Directory
from pbkv_cluster.store.cluster_index import connect as connect_redis

SHORT, LONG = 32, 4096
WORKFLOWS = 48
_WARM_UP = 10
_TURNS = 2  # of gateway and proxy, one after the other, while many workflows run
_SETTLE_S = 0.3  # for the first step's blocks to reach the index
_numbers = itertools.count()


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    rounds = 30 if quick else 500
    cluster, figures = running(), list[Figure]()
    with asyncio.Runner() as runner:
        for tokens in (SHORT, LONG):
            figures += runner.run(_measure(cluster, tokens, rounds))
        for tokens in (1, 32):
            figures += runner.run(_throughput(cluster, tokens, rounds=1 if quick else max(64 // tokens, 4) // _TURNS))
    triples = f"2 workers with the small model, one token of output, {rounds} triples of steps one after the other"
    sizes = f"{triples}; then {WORKFLOWS} workflows at once. The proxy passes bytes on, and does nothing else"
    return Report("gateway", sizes, tuple(figures))


async def _measure(cluster: Running, tokens: int, rounds: int) -> list[Figure]:
    drawn = random.Random(tokens)
    prompt = pack([drawn.randrange(1000) for _ in range(tokens)])
    async with AsyncClient(cluster.gateway) as client, await client.start_workflow() as workflow:
        first = await workflow.run(agent="agent", prompt=prompt, max_tokens=1)
        await asyncio.sleep(_SETTLE_S)
        address = (await _workers(cluster.redis_url))[first.usage.worker_id]
        with forwarding([address]) as proxy:
            async with connect(address) as straight, connect(proxy.address) as forwarded:
                stubs = [worker_pb2_grpc.WorkerServiceStub(channel) for channel in (straight, forwarded)]
                taken: list[tuple[float, float, float]] = []
                spent = _Spent(cluster, proxy)
                for number in range(_WARM_UP + rounds):
                    if number == _WARM_UP:
                        spent.begin()
                    triple = (
                        await _seconds(lambda: workflow.run(agent="agent", prompt=prompt, max_tokens=1)),
                        await _seconds(lambda: _step(stubs[1], workflow.id, prompt, 1)),
                        await _seconds(lambda: _step(stubs[0], workflow.id, prompt, 1)),
                    )
                    if number >= _WARM_UP:
                        taken.append(triple)
                by_gateway, by_proxy = spent.end()
    added = [through - direct for through, _, direct in taken]
    floor = [through - direct for _, through, direct in taken]
    direct = [each for _, _, each in taken]
    what, at_most = f"{tokens:,} tokens", 2 if tokens == SHORT else 2.5
    return [
        Figure(f"{what}: gateway adds, p50", median(added) * 1e3, "ms", at_most=at_most),
        Figure(f"{what}: bare proxy adds, p50", median(floor) * 1e3, "ms"),
        Figure(f"{what}: gateway adds, p99", percentile(added, 0.99) * 1e3, "ms"),
        Figure(f"{what}: bare proxy adds, p99", percentile(floor, 0.99) * 1e3, "ms"),
        Figure(f"{what}: gateway's processor time per step", by_gateway / rounds * 1e3, "ms"),
        Figure(f"{what}: bare proxy's processor time per step", by_proxy / rounds * 1e3, "ms"),
        Figure(f"{what}: step straight to the worker, p50", median(direct) * 1e3, "ms"),
        Figure(f"{what}: step straight to the worker, p99", percentile(direct, 0.99) * 1e3, "ms"),
    ]


async def _throughput(cluster: Running, tokens: int, rounds: int) -> list[Figure]:
    """Steps of many workflows at once: how many a second, and processor time for each token of output."""
    prompts = [pack([random.Random(number).randrange(1000) for _ in range(SHORT)]) for number in range(WORKFLOWS)]
    took_s, spent_s = [0.0, 0.0], [0.0, 0.0]
    with forwarding(list((await _workers(cluster.redis_url)).values())) as proxy:
        async with AsyncClient(cluster.gateway) as client, connect(proxy.address) as forwarded:
            stub = worker_pb2_grpc.WorkerServiceStub(forwarded)

            workflows = await asyncio.gather(*(client.start_workflow() for _ in range(WORKFLOWS)))

            async def by_gateway(number: int, steps: int) -> None:
                for _ in range(steps):
                    async for _ in workflows[number].stream(agent="agent", prompt=prompts[number], max_tokens=tokens):
                        pass

            async def by_proxy(number: int, steps: int) -> None:
                for _ in range(steps):
                    await _step(stub, f"proxied/{number}", prompts[number], tokens)

            ways = (by_gateway, by_proxy)
            for way in ways:
                await asyncio.gather(*(way(number, 1) for number in range(WORKFLOWS)))
            spent = _Spent(cluster, proxy)
            for which, way in [*enumerate(ways)] * _TURNS:
                spent.begin()
                start = perf_counter()
                await asyncio.gather(*(way(number, rounds) for number in range(WORKFLOWS)))
                took_s[which] += perf_counter() - start
                spent_s[which] += spent.end()[which]
            await asyncio.gather(*(workflow.end() for workflow in workflows))
    what, steps = f"{WORKFLOWS} workflows, {tokens} tokens each", WORKFLOWS * rounds * _TURNS
    token_us = [each / steps / tokens * 1e6 for each in spent_s]
    return [
        Figure(f"{what}: steps a second", steps / took_s[0], "/s"),
        Figure(f"{what}: the same through the bare proxy", steps / took_s[1], "/s"),
        Figure(f"{what}: gateway's processor time per token", token_us[0], "µs", at_most=30 if tokens > 1 else None),
        Figure(f"{what}: bare proxy's processor time per token", token_us[1], "µs"),
    ]


class _Spent:
    """Processor time of gateway and proxy."""

    def __init__(self, cluster: Running, proxy: Proxy) -> None:
        self._processes = psutil.Process(cluster.pids()["gateway"]), psutil.Process(proxy.pid)
        self._before = 0.0, 0.0

    def begin(self) -> None:
        self._before = self._now()

    def end(self) -> tuple[float, float]:
        """Seconds since `begin`, of each."""
        gateway, proxy = self._now()
        return gateway - self._before[0], proxy - self._before[1]

    def _now(self) -> tuple[float, float]:
        gateway, proxy = (sum(process.cpu_times()[:2]) for process in self._processes)
        return gateway, proxy


async def _workers(redis_url: str) -> dict[str, str]:
    """Addresses by id."""
    redis = connect_redis(redis_url)
    try:
        workers = await Directory(redis, CONFIG.cluster.name, CONFIG.redis.lease_s).workers()
    finally:
        await redis.aclose()
    return {worker.worker_id: worker.address for worker in workers}


async def _seconds(step: Callable[[], Awaitable[object]]) -> float:
    start = perf_counter()
    await step()
    return perf_counter() - start


async def _step(stub: "worker_pb2_grpc.WorkerServiceAsyncStub", workflow_id: str, prompt: bytes, tokens: int) -> None:
    request = worker_pb2.RunStepRequest(
        request_id=f"direct/{next(_numbers)}",
        workflow_id=workflow_id,
        agent_id="agent",
        prompt=types_pb2.PackedTokens(data=prompt),
        sampling=types_pb2.Sampling(max_tokens=tokens),
    )
    async for _ in stub.RunStep(request):
        pass
