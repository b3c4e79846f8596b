"""What the gateway adds to a step: the same step by gateway, by a bare proxy, and straight to the worker, in turn.

By gateway there are two ways: as clients do by default, where the output comes straight from the worker, and as a relay of the
output. Gateway, proxy, workers and Redis are processes of their own. There are two workers, so that the gateway has to choose
the one that has the prompt. A step is cheap for the worker: its prompt is cached, and its output is one token.
"""

import argparse
import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from time import perf_counter

import psutil

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, Running, running
from benchmarks.serving.proxy import Proxy, forwarding
from benchmarks.timing import percentile
from pbkv_cluster.client import AsyncClient, AsyncWorkflow
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import Directory
from pbkv_cluster.store.cluster_index import connect as connect_redis

SHORT, LONG = 32, 4096
WORKFLOWS = 64
_WARM_UP = 10
_TURNS = 8  # of all ways, one after the other, while many workflows run
_IN_A_ROW = 20  # steps of one way, and then of the next
_SETTLE_S = 0.3  # for the first step's blocks to reach the index
_numbers = itertools.count()


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    rounds = 30 if quick else 300
    cluster, figures = running(), list[Figure]()
    with asyncio.Runner() as runner:
        for tokens in (SHORT, LONG):
            figures += runner.run(_measure(cluster, tokens, rounds))
        for tokens in (1, 32):
            figures += runner.run(_throughput(cluster, tokens, rounds=1 if quick else max(64 // tokens // _TURNS, 1)))
    sizes = f"2 workers with the small model, one token of output, {rounds} rounds of steps one after the other"
    sizes = f"{sizes}; then {WORKFLOWS} workflows at once. The proxy passes bytes on, and does nothing else"
    return Report("gateway", sizes, tuple(figures))


async def _measure(cluster: Running, tokens: int, rounds: int) -> list[Figure]:
    drawn = random.Random(tokens)
    prompt = pack([drawn.randrange(1000) for _ in range(tokens)])
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(cluster.gateway, direct=direct)) for direct in (True, False)]
        direct, relayed = [await stack.enter_async_context(await client.start_workflow()) for client in clients]
        first = await direct.run(agent="agent", prompt=prompt, max_tokens=1)
        await asyncio.sleep(_SETTLE_S)
        address = (await _workers(cluster.redis_url))[first.usage.worker_id]
        proxy = stack.enter_context(forwarding([address]))
        straight, forwarded = [await stack.enter_async_context(connect(each)) for each in (address, proxy.address)]
        stubs = [worker_pb2_grpc.WorkerServiceStub(channel) for channel in (straight, forwarded)]
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "gateway": lambda: direct.run(agent="agent", prompt=prompt, max_tokens=1),
            "relay": lambda: relayed.run(agent="agent", prompt=prompt, max_tokens=1),
            "bare proxy": lambda: _step(stubs[1], relayed.id, prompt, 1),
            "straight": lambda: _step(stubs[0], relayed.id, prompt, 1),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(_WARM_UP + rounds):
            for name, way in ways.items():
                seconds = await _seconds(way)
                if number >= _WARM_UP:
                    taken[name].append(seconds)
        spent, turns = _Spent(cluster, proxy), max(rounds // _IN_A_ROW, 1)
        took_s, spent_s = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
        for name, way in [*ways.items()] * turns:
            spent.begin()
            start = perf_counter()
            for _ in range(_IN_A_ROW):
                await way()
            took_s[name] += perf_counter() - start
            spent_s[name] += spent.end()[name == "bare proxy"]
    what, at_most = f"{tokens:,} tokens", 2 if tokens == SHORT else 2.5
    figures = []
    for name in ("gateway", "relay", "bare proxy"):
        added = [seconds - straight for seconds, straight in zip(taken[name], taken["straight"], strict=True)]
        figures += [
            Figure(f"{what}: {name} adds, p50", median(added) * 1e3, "ms", at_most=at_most if name == "gateway" else None),
            Figure(f"{what}: {name} adds, p99", percentile(added, 0.99) * 1e3, "ms"),
            Figure(f"{what}: {name}'s processor time per step", spent_s[name] / turns / _IN_A_ROW * 1e3, "ms"),
        ]
    figures += [Figure(f"{what}: {name}, a step in a row", took_s[name] / turns / _IN_A_ROW * 1e3, "ms") for name in ways]
    return [
        *figures,
        Figure(f"{what}: step straight to the worker, p50", median(taken["straight"]) * 1e3, "ms"),
        Figure(f"{what}: step straight to the worker, p99", percentile(taken["straight"], 0.99) * 1e3, "ms"),
    ]


async def _throughput(cluster: Running, tokens: int, rounds: int) -> list[Figure]:
    """Steps of many workflows at once: how many a second, and processor time for each token of output."""
    prompts = [pack([random.Random(number).randrange(1000) for _ in range(SHORT)]) for number in range(WORKFLOWS)]
    ways: dict[str, Callable[[int, int], Awaitable[None]]] = {}
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(forwarding(list((await _workers(cluster.redis_url)).values())))
        stub = worker_pb2_grpc.WorkerServiceStub(await stack.enter_async_context(connect(proxy.address)))
        for name, direct in (("gateway", True), ("relay", False)):
            client = await stack.enter_async_context(AsyncClient(cluster.gateway, direct=direct))
            ways[name] = partial(_steps_of, [await client.start_workflow() for _ in range(WORKFLOWS)], prompts, tokens)

        async def by_proxy(number: int, steps: int) -> None:
            for _ in range(steps):
                await _step(stub, f"proxied/{number}", prompts[number], tokens)

        ways["bare proxy"] = by_proxy
        for way in [*ways.values()] * 2:  # twice: a client connects to the workers that its first steps run on
            await asyncio.gather(*(way(number, 1) for number in range(WORKFLOWS)))
        spent = _Spent(cluster, proxy)
        took_s, spent_s = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
        for name, way in [*ways.items()] * _TURNS:
            spent.begin()
            start = perf_counter()
            await asyncio.gather(*(way(number, rounds) for number in range(WORKFLOWS)))
            took_s[name] += perf_counter() - start
            spent_s[name] += spent.end()[name == "bare proxy"]
    what, steps = f"{WORKFLOWS} workflows, {tokens} tokens each", WORKFLOWS * rounds * _TURNS
    figures = [Figure(f"{what}: {name}, steps a second", steps / took_s[name], "/s") for name in ways]
    for name in ways:
        at_most = 30 if tokens > 1 and name == "gateway" else None
        figures.append(
            Figure(f"{what}: {name}'s processor time per token", spent_s[name] / steps / tokens * 1e6, "µs", at_most=at_most)
        )
    return figures


async def _steps_of(workflows: Sequence[AsyncWorkflow], prompts: Sequence[bytes], tokens: int, number: int, steps: int) -> None:
    for _ in range(steps):
        async for _ in workflows[number].stream(agent="agent", prompt=prompts[number], max_tokens=tokens):
            pass


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
