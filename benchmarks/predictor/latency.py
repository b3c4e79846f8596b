"""Latency from an event at the gateway to re-keyed leaves on a worker, at a steady rate of events.

The predictor is a process of its own. This process has the gateway's real event feed, a worker's real forecast listener, and a
cache in which every workflow owns blocks. Nothing else runs in it.
"""

import asyncio
import multiprocessing
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

from benchmarks.predictor.load import copies
from benchmarks.report import Figure, Report
from benchmarks.serving.index import insert, make_cache
from benchmarks.timing import percentile
from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cluster.membership.member_base import collect_rarely
from pbkv_cluster.core.background import Background
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.predictor_link.link import PredictorLink
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices
from pbkv_cluster.simulator.prediction.training import train_predictor
from pbkv_cluster.simulator.prediction.trial import Events

RATES = (300, 1000)  # events a second
_SECONDS = 10
_QUICK_EVENTS = 1000  # enough to place every workflow
_WORKFLOWS = 256  # enough for the forecast after an event to arrive long before the workflow's next event
_LEAVES = 8  # of each workflow
_BLOCKS = 4  # of each leaf
_TIMEOUT_S = 30.0
_WORKER = "worker"


def latency(train: Sequence[Events], test: Sequence[Events], quick: bool) -> Report:
    """Sends events at a steady rate, and measures when each has changed the cache."""
    taken = dict[int, list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "predictor.state")
        predictor = PREDICTORS.get(PredictorConfig().model)(PredictorConfig())
        train_predictor(predictor, train)
        predictor.save(state)
        for rate in RATES:
            with _serving(state) as address:
                taken[rate] = asyncio.run(_measure(address, test, rate, _QUICK_EVENTS if quick else rate * _SECONDS))
    figures = list[Figure]()
    for rate, each in taken.items():
        what = f"{rate:,} events a second: event to re-keyed leaves"
        figures.append(Figure(f"{what}, p50", 1e3 * median(each), "ms", at_most=5 if rate == RATES[-1] else None))
        figures.append(Figure(f"{what}, p99", 1e3 * percentile(each, 0.99), "ms"))
    counts = " and ".join(f"{len(each):,}" for each in taken.values())
    sizes = f"{_WORKFLOWS} workflows, {counts} events; {_LEAVES} leaves each; policy pbkv"
    return Report("predictor: latency", sizes, tuple(figures))


class _Worker:
    """In place of a worker's engine thread: applies each forecast at once, and records when.

    No steps run. Each workflow's last step gets the number that the forecast starts from, so that the forecast is not ignored.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._last_steps = {owner.id: owner.record.steps[-1] for owner in cache.workflows.all()}
        self.sent: dict[str, float] = {}  # by workflow: when an event was sent that no forecast has followed yet
        self.taken: list[float] = []
        self.cache = self
        self.settled = asyncio.Event()  # a forecast has followed every event

    async def call(self, run: Callable[[Any], int]) -> int:
        return run(self)

    def apply(self, forecast: Forecast) -> bool:
        self._last_steps[forecast.workflow].number = forecast.step
        changed = self._cache.apply(forecast)
        if (sent := self.sent.pop(forecast.workflow, None)) is not None:
            self.taken.append(perf_counter() - sent)
            if not self.sent:
                self.settled.set()
        return changed


async def _measure(address: str, test: Sequence[Events], rate: int, number: int) -> list[float]:
    services, worker = FixedServices({PREDICTOR: address}), _Worker(_filled_cache())
    link = PredictorLink(services, cast(EngineThread, worker), _WORKER, learns=False)
    feed = EventFeed(services, Counter())
    background = Background()
    link.start()
    background.start(feed.run(), "events")
    try:
        await _send(feed, worker, test, rate, number)
        async with asyncio.timeout(_TIMEOUT_S):
            while worker.sent:
                worker.settled.clear()
                await worker.settled.wait()
    finally:
        await background.stop()
        await link.stop()
    return worker.taken[_WORKFLOWS:]  # the first ones waited for connections


async def _send(feed: EventFeed, worker: _Worker, test: Sequence[Events], rate: int, number: int) -> None:
    streams = [_placed(copies(test, at)) for at in range(_WORKFLOWS)]
    events = [next(streams[at % _WORKFLOWS]) for at in range(_WORKFLOWS + number)]  # before the clock starts
    began = perf_counter()
    for at, event in enumerate(events):
        if (wait := began + at / rate - perf_counter()) > 0:
            await asyncio.sleep(wait)
        if event.kind is not EventKind.STEP_PLACED:  # changes nothing if the worker has had steps of the workflow
            worker.sent.setdefault(event.workflow, perf_counter())
        feed.put(event)


def _placed(events: Iterator[WorkflowEvent]) -> Iterator[WorkflowEvent]:
    """Adds the event that places the workflow on the worker, after the start of its first step, as a gateway does."""
    for event in events:
        if event.step or event.kind is EventKind.STEP_FINISHED:
            yield replace(event, sequence=event.sequence + 1)
            continue
        yield event
        if event.kind is EventKind.STEP_STARTED:
            yield replace(event, kind=EventKind.STEP_PLACED, sequence=event.sequence + 1, worker=_WORKER, words=(), pieces=())


def _filled_cache() -> KVCache:
    cache, drawn = make_cache(2 * _WORKFLOWS * _LEAVES * _BLOCKS + 1, policy="pbkv"), random.Random(0)
    for workflow in range(_WORKFLOWS):
        for _ in range(_LEAVES):
            insert(cache, drawn.randbytes(16 * _BLOCKS * TOKEN_BYTES), f"open-{workflow}")
    return cache


@contextmanager
def _serving(state: Path) -> Iterator[str]:
    """Starts a predictor with a saved state in a process of its own, and yields its address."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, state))
    process.start()
    there.close()
    try:
        yield str(here.recv())
    finally:
        here.close()  # tells it to stop
        process.join()


def _serve(connection: Connection, state: Path) -> None:
    asyncio.run(_served(connection, state))


async def _served(connection: Connection, state: Path) -> None:
    server = PredictorServer(PredictorConfig(), state_path=state)
    address = await server.start("127.0.0.1", 0)
    collect_rarely()
    connection.send(address)
    try:
        await asyncio.to_thread(connection.poll, None)  # returns when the other end is closed
    finally:
        await server.stop()
