"""What the dashboard costs with ten viewers, and how soon they see what has happened.

The processor time is that of the process that runs the cluster, and of all members and Redis together, each with and without
viewers, while the same steps run. A viewer reads the stream of snapshots and asks for charts as often as the page does. It has
seen a step when it gets a snapshot that counts it, and the end of a member when one says so.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import psutil

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, Running, started
from pbkv_cluster.client import AsyncClient, AsyncWorkflow

_VIEWERS = 10
_CHARTS_S = 4.0  # between two requests for charts, as in static/main.js
_WORKFLOWS = 12  # that are open, and run steps in turn
_STEP_S = 0.5  # between two steps
_SETTLE_S = 3.0
_BACK_S = 120.0  # for a member that was killed to serve again
_PROMPT = list(range(1000, 1064))
_KILLED = "worker-1"


@dataclass(slots=True)
class _Viewer:
    """One who looks, and when what reached it."""

    steps: list[tuple[float, float]] = field(default_factory=list)  # time of arrival, steps counted in the snapshot
    up: list[tuple[float, bool]] = field(default_factory=list)  # time of arrival, whether the member that is killed is up
    arrived: asyncio.Event = field(default_factory=asyncio.Event)  # set with each snapshot

    async def watch(self, address: tuple[str, int]) -> None:
        async for line in _lines(address, "/api/events"):
            if line.startswith(b"data: "):
                now = perf_counter()
                snapshot = json.loads(line.removeprefix(b"data: "))
                if snapshot.get("totals"):
                    self.steps.append((now, snapshot["totals"]["steps"]))
                up = {member["name"]: member["up"] for member in snapshot.get("members", ())}
                self.up.append((now, up.get(_KILLED, False)))
                self.arrived.set()

    async def wait_for(self, up: bool, number: int) -> float:
        """When the first snapshot came, after that many, in which the member is up, or is not."""
        while True:
            for arrived, is_up in self.up[number:]:
                if is_up is up:
                    return arrived
            self.arrived.clear()
            await self.arrived.wait()

    async def ask_for_charts(self, address: tuple[str, int]) -> None:
        reader, writer = await _ask(address, "/api/history?seconds=900")
        try:
            while True:
                await reader.readexactly(await _length(reader))
                await asyncio.sleep(_CHARTS_S)
                writer.write(_request(address, "/api/history?seconds=900"))
        finally:
            writer.close()


@dataclass(slots=True)
class _Load:
    """Steps in open workflows, and when each ended."""

    ended: list[float] = field(default_factory=list)

    async def run(self, workflows: list[AsyncWorkflow]) -> None:
        while True:
            await asyncio.sleep(_STEP_S)
            workflow = workflows[len(self.ended) % len(workflows)]
            await workflow.run(agent=f"agent {len(self.ended) % 5}", prompt=_PROMPT, max_tokens=4)
            self.ended.append(perf_counter())


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    measured_s, kills = (5.0, 1) if quick else (60.0, 3)
    config = CONFIG.model_copy(update={"dashboard": CONFIG.dashboard.model_copy(update={"port": 0})})
    with started(CONFIG) as cluster:
        without = asyncio.run(_without_dashboard(cluster, measured_s))
    with started(config, with_dashboard=True) as cluster:
        figures = asyncio.run(_measure(cluster, measured_s, kills, without))
    steps = f"{_WORKFLOWS} open workflows, at most {1 / _STEP_S:g} steps a second; {measured_s:g} s, {kills} kills of a worker"
    return Report("dashboard", f"{_VIEWERS} viewers; 2 workers with the small model, {steps}", tuple(figures))


@contextlib.asynccontextmanager
async def _load(cluster: Running) -> AsyncIterator[_Load]:
    """Runs steps."""
    load = _Load()
    async with AsyncClient(cluster.gateway) as client:
        workflows = [await client.start_workflow(workload="benchmark", lease_s=3600.0) for _ in range(_WORKFLOWS)]
        running = asyncio.ensure_future(load.run(workflows))
        try:
            await asyncio.sleep(_SETTLE_S)
            yield load
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


@contextlib.asynccontextmanager
async def _viewers(address: tuple[str, int]) -> AsyncIterator[list[_Viewer]]:
    """Viewers who look all the time."""
    viewers = [_Viewer() for _ in range(_VIEWERS)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(viewer.watch(address)) for viewer in viewers]
        tasks += [group.create_task(viewer.ask_for_charts(address)) for viewer in viewers]
        await asyncio.sleep(_SETTLE_S)
        yield viewers
        for task in tasks:
            task.cancel()


async def _without_dashboard(cluster: Running, measured_s: float) -> tuple[float, float]:
    async with _load(cluster):
        return await _shares(cluster, measured_s)


async def _measure(cluster: Running, measured_s: float, kills: int, without: tuple[float, float]) -> list[Figure]:
    url = urlsplit(cluster.dashboard)
    address = (url.hostname or "", url.port or 0)
    async with _load(cluster) as load:
        alone = await _shares(cluster, measured_s)
        async with _viewers(address) as viewers:
            watched = await _shares(cluster, measured_s)
            steps = _delays_of_steps(load, viewers)
            ends = [delay for _ in range(kills) for delay in await _delays_of_an_end(cluster, viewers)]
    return [
        Figure("dashboard with viewers adds to its process, of a core", 100 * (watched[0] - without[0]), "%", at_most=1),
        Figure("dashboard without viewers adds to its process, of a core", 100 * (alone[0] - without[0]), "%"),
        Figure("that process without a dashboard, of a core", 100 * without[0], "%"),
        Figure("dashboard with viewers adds to members and Redis, of a core", 100 * (watched[1] - without[1]), "%"),
        Figure("end of a step to its arrival at a viewer, p50", median(steps), "s", at_most=1),
        Figure("end of a step to its arrival at a viewer, longest", max(steps), "s", at_most=1),
        Figure("end of a worker to its arrival at a viewer, p50", median(ends), "s", at_most=1),
        Figure("end of a worker to its arrival at a viewer, longest", max(ends), "s", at_most=1),
    ]


async def _shares(cluster: Running, duration_s: float) -> tuple[float, float]:
    """Processor time over a while, as shares of a core: of the process with the dashboard, and of all members and Redis."""
    pids = await asyncio.to_thread(cluster.pids)
    head = psutil.Process(cluster.pid)
    others = [psutil.Process(pid) for pid in pids.values()]
    others += [child for child in head.children(recursive=True) if child.name().startswith("redis")]
    start, before, before_others = perf_counter(), _used_s([head]), _used_s(others)
    await asyncio.sleep(duration_s)
    taken = perf_counter() - start
    return (_used_s([head]) - before) / taken, (_used_s(others) - before_others) / taken


def _used_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def _delays_of_steps(load: _Load, viewers: list[_Viewer]) -> list[float]:
    """From the end of each step that ran while all looked to the first snapshot that counts it, at each viewer."""
    first = max(viewer.steps[0][0] for viewer in viewers)
    last = min(viewer.steps[-1][1] for viewer in viewers)
    delays = []
    for number, ended in enumerate(load.ended, start=1):
        if ended > first and number <= last:
            arrivals = (next(arrived for arrived, steps in viewer.steps if steps >= number) for viewer in viewers)
            delays += [max(0.0, arrived - ended) for arrived in arrivals]
    return delays


async def _delays_of_an_end(cluster: Running, viewers: list[_Viewer]) -> list[float]:
    """From kill -9 of a worker to the first snapshot that says so, at each viewer. Waits until it is up again."""
    pids = await asyncio.to_thread(cluster.pids)
    seen = [len(viewer.up) for viewer in viewers]
    start = perf_counter()
    os.kill(pids[_KILLED], signal.SIGKILL)
    async with asyncio.timeout(_BACK_S):
        downs = [await viewer.wait_for(False, number) for viewer, number in zip(viewers, seen, strict=True)]
        for viewer in viewers:
            await viewer.wait_for(True, len(viewer.up))
    return [down - start for down in downs]


async def _lines(address: tuple[str, int], path: str) -> AsyncIterator[bytes]:
    """The lines of an answer, as they come."""
    reader, writer = await _ask(address, path)
    try:
        while line := await reader.readline():
            yield line
    finally:
        writer.close()


async def _ask(address: tuple[str, int], path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
    writer.write(_request(address, path))
    return reader, writer


def _request(address: tuple[str, int], path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n\r\n".encode()


async def _length(reader: asyncio.StreamReader) -> int:
    """Reads the head of an answer. Returns the bytes of its body.

    Raises:
        RuntimeError: it is none.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise RuntimeError(head.decode())
    return int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
