"""What the gateway adds to a step: the same step through the gateway and directly to the worker, in turn, on a running cluster.

Gateway, workers and Redis are processes of their own. There are two workers, so that the gateway has to ask the index which of
them has the prompt. A step is cheap for the worker: its prompt is cached, and its output is one token.
"""

import argparse
import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import psutil

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, Running, running
from benchmarks.timing import percentile
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.client.aio import AsyncWorkflow
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import Directory
from pbkv_cluster.store.cluster_index import connect as connect_redis

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

SHORT, LONG = 32, 4096
WORKFLOWS = 48
_WARM_UP = 10
_SETTLE_S = 0.3  # for the first step's blocks to reach the index
_numbers = itertools.count()


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    rounds = 30 if quick else 500
    cluster, figures = running(), list[Figure]()
    with asyncio.Runner() as runner:
        for tokens in (SHORT, LONG):
            figures += runner.run(_measure(cluster.gateway, cluster.redis_url, tokens, rounds))
        for tokens in (1, 32):
            figures += runner.run(_throughput(cluster, tokens, rounds=1 if quick else 64 // tokens))
    pairs = f"2 workers with the small model, one token of output, {rounds} pairs of steps one after the other"
    sizes = f"{pairs}; then {WORKFLOWS} workflows at once"
    return Report("gateway", sizes, tuple(figures))


async def _measure(gateway: str, redis_url: str, tokens: int, rounds: int) -> list[Figure]:
    drawn = random.Random(tokens)
    prompt = pack([drawn.randrange(1000) for _ in range(tokens)])
    async with AsyncClient(gateway) as client, await client.start_workflow() as workflow:
        first = await workflow.run(agent="agent", prompt=prompt, max_tokens=1)
        await asyncio.sleep(_SETTLE_S)
        async with _worker(redis_url, first.usage.worker_id) as stub:
            through, direct = [], []
            for number in range(_WARM_UP + rounds):
                pair = await _through(workflow, prompt), await _direct(stub, workflow.id, prompt)
                if number >= _WARM_UP:
                    through.append(pair[0])
                    direct.append(pair[1])
    added = [a - b for a, b in zip(through, direct, strict=True)]
    what = f"{tokens:,} tokens"
    return [
        Figure(f"{what}: gateway adds, p50", median(added) * 1e3, "ms", at_most=2),
        Figure(f"{what}: gateway adds, p99", percentile(added, 0.99) * 1e3, "ms"),
        Figure(f"{what}: step straight to the worker, p50", median(direct) * 1e3, "ms"),
        Figure(f"{what}: step straight to the worker, p99", percentile(direct, 0.99) * 1e3, "ms"),
    ]


async def _throughput(cluster: Running, tokens: int, rounds: int) -> list[Figure]:
    """Steps of many workflows at once: how many a second, and processor time of the gateway for each token of output."""
    gateway = psutil.Process(cluster.pids()["gateway"])

    async def workflow(client: AsyncClient, number: int, steps: int) -> None:
        drawn = random.Random(number)
        prompt = [drawn.randrange(1000) for _ in range(SHORT)]
        async with await client.start_workflow() as workflow:
            for _ in range(steps):
                async for _ in workflow.stream(agent="agent", prompt=prompt, max_tokens=tokens):
                    pass

    async with AsyncClient(cluster.gateway) as client:
        await asyncio.gather(*(workflow(client, number, 1) for number in range(WORKFLOWS)))
        before, start = sum(gateway.cpu_times()[:2]), perf_counter()
        await asyncio.gather(*(workflow(client, number, rounds) for number in range(WORKFLOWS)))
        took_s, spent_s = perf_counter() - start, sum(gateway.cpu_times()[:2]) - before
    what, steps = f"{WORKFLOWS} workflows, {tokens} tokens each", WORKFLOWS * rounds
    spent_us = spent_s / steps / tokens * 1e6
    return [
        Figure(f"{what}: steps a second", steps / took_s, "/s"),
        Figure(f"{what}: gateway's processor time per token", spent_us, "µs", at_most=30 if tokens > 1 else None),
    ]


@asynccontextmanager
async def _worker(redis_url: str, worker_id: str) -> AsyncIterator["WorkerServiceAsyncStub"]:
    redis = connect_redis(redis_url)
    try:
        workers = await Directory(redis, CONFIG.cluster.name, CONFIG.redis.lease_s).workers()
    finally:
        await redis.aclose()
    address = next(worker.address for worker in workers if worker.worker_id == worker_id)
    async with connect(address) as channel:
        yield worker_pb2_grpc.WorkerServiceStub(channel)


async def _through(workflow: AsyncWorkflow, prompt: bytes) -> float:
    start = perf_counter()
    await workflow.run(agent="agent", prompt=prompt, max_tokens=1)
    return perf_counter() - start


async def _direct(stub: "WorkerServiceAsyncStub", workflow_id: str, prompt: bytes) -> float:
    start = perf_counter()
    request = worker_pb2.RunStepRequest(
        request_id=f"direct/{next(_numbers)}",
        workflow_id=workflow_id,
        agent_id="agent",
        prompt=types_pb2.PackedTokens(data=prompt),
        sampling=types_pb2.Sampling(max_tokens=1),
    )
    async for _ in stub.RunStep(request):
        pass
    return perf_counter() - start
