"""From kill -9 of a member to the next success, with a standby that is ready: gateway and predictor in turn.

A gateway is back when a step succeeds, which a client submits again and again. A predictor is back when a subscriber is sent
the forecast of a workflow that has started since.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from statistics import median
from time import perf_counter

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, Running, running
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.integrations.forecast_stream import watch_forecasts
from pbkv_cluster.rpc.services import GATEWAY, PREDICTOR
from pbkv_cluster.store.cluster_index import Directory, connect

_PROMPT = [5] * 32
_POLL_S = 0.01
_LIMIT_S = 120.0


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    rounds = 1 if quick else 10
    cluster, figures = running(), list[Figure]()
    kinds: dict[str, Callable[[Running, int], Awaitable[float]]] = {GATEWAY: _gateway, PREDICTOR: _predictor}
    with asyncio.Runner() as runner:
        for name, restart in kinds.items():
            taken = [runner.run(asyncio.wait_for(restart(cluster, cluster.pids()[name]), _LIMIT_S)) for _ in range(rounds)]
            what = "step" if name == GATEWAY else "forecast"
            figures.append(Figure(f"{name}: killed to the next {what}, p50", median(taken), "s", at_most=3))
            figures.append(Figure(f"{name}: killed to the next {what}, longest", max(taken), "s", at_most=3))
    return Report("restart", f"{CONFIG.cluster.workers} workers with the small model; {rounds} kills of each", tuple(figures))


async def _gateway(cluster: Running, pid: int) -> float:
    async with AsyncClient(cluster.gateway) as client:
        await _step(client)
        os.kill(pid, signal.SIGKILL)
        start = perf_counter()
        while True:
            try:
                await _step(client)
                return perf_counter() - start
            except PbkvError:
                await asyncio.sleep(_POLL_S)


async def _predictor(cluster: Running, pid: int) -> float:
    redis = connect(cluster.redis_url)
    directory = Directory(redis, CONFIG.cluster.name, CONFIG.redis.lease_s)
    try:
        async with (
            AsyncClient(cluster.gateway) as client,
            aclosing(watch_forecasts(directory, "benchmark")) as forecasts,
        ):
            before = await _step(client)
            async for forecast in forecasts:
                if forecast.workflow == before:
                    break
            os.kill(pid, signal.SIGKILL)
            start = perf_counter()
            since = await _step(client)
            async for forecast in forecasts:
                if forecast.workflow == since:
                    break
            return perf_counter() - start
    finally:
        await redis.aclose()


async def _step(client: AsyncClient) -> str:
    """Runs a step of a new workflow, which stays open. Returns the workflow's id."""
    workflow = await client.start_workflow(workload="restart")
    await workflow.run(agent="agent", prompt=_PROMPT, max_tokens=1)
    return workflow.id
