"""A predictor that is killed under load, between a real gateway's feed and a real worker's link."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeAlias, cast

import pytest

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.config import CacheConfig, PredictorConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.predictor_link.link import PredictorLink
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from tests.cache.policy_harness import Cache
from tests.polling import eventually

WORKER = "worker"
CAPACITY = 1024  # of the feed, in events
PATIENCE_S = 60.0
NEAR = 0.1

# By the name that the client gives the workload: none for the second. One in four workflows ends with the last agent.
AGENTS = {"app": ("plan", "code", "test", "review"), "": ("ask", "search", "read", "answer")}

Probabilities: TypeAlias = dict[str, dict[str, float]]
"""Probability of each agent, by workload."""

PREDICTOR = """
import asyncio, sys
from pathlib import Path
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.server import PredictorServer
async def main():
    server = PredictorServer(PredictorConfig(), state_path=Path(sys.argv[1]), save_interval_s=0.05)
    print(await server.start("127.0.0.1", 0), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # returns when the test is over, however that ends
    await server.stop()
asyncio.run(main())
"""


@asynccontextmanager
async def predictor(state: Path) -> AsyncIterator[tuple[Process, str]]:
    """A predictor in a process of its own, and its address."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PREDICTOR, str(state), stdin=PIPE, stdout=PIPE, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            address = (await process.stdout.readline()).decode().strip()
        yield process, address
    finally:
        process.stdin.close()
        await process.wait()


class Services:
    """Stands for the directory: knows where the predictor is, if it is anywhere."""

    address: str | None = None

    async def service_address(self, name: str) -> str | None:
        return self.address


class Worker:
    """Stands for an engine and its thread: applies forecasts to a real cache, and remembers the latest."""

    def __init__(self) -> None:
        self.played = Cache("pbkv-paper")
        self.cache = self
        self.heard: dict[str, Forecast] = {}  # latest of each workflow
        self.epochs: list[int] = []  # as they came

    async def call(self, run: Callable[[Any], int]) -> int:
        return run(self)

    def apply(self, forecast: Forecast) -> bool:
        self.heard[forecast.workflow] = forecast
        self.epochs.append(forecast.epoch)
        return self.played.cache.apply(forecast)

    def worth(self, workflow: str) -> float:
        """What the cache holds a workflow's only leaf to be worth, in halvings."""
        played = self.played
        (node,) = next(owner for owner in played.cache.workflows.all() if owner.id == workflow).nodes
        return played.cache.policies[0].value(node, played.clock.now())


def events(name: str, workload: str, agents: Iterable[str], *, ends: bool = True) -> Iterator[WorkflowEvent]:
    sequences = count()

    def event(kind: EventKind, agent: str = "", step: int = 0, worker: str = "") -> WorkflowEvent:
        return WorkflowEvent(kind, name, next(sequences), 0.0, workload, agent, step=step, worker=worker)

    yield event(EventKind.WORKFLOW_STARTED)
    for step, agent in enumerate(agents):
        yield event(EventKind.STEP_STARTED, agent, step)
        yield event(EventKind.STEP_PLACED, agent, step, WORKER)
        yield event(EventKind.STEP_FINISHED, agent, step)
    if ends:
        yield event(EventKind.WORKFLOW_ENDED)


def halfway(name: str, workload: str) -> Iterator[WorkflowEvent]:
    return events(name, workload, AGENTS[workload][:2], ends=False)


class Lines:
    """The feed and the link, and what stands at their ends."""

    def __init__(self) -> None:
        self.services, self.worker, self.decisions = Services(), Worker(), Decisions()
        self.feed = EventFeed(self.services, self.decisions, CAPACITY)
        self._link = PredictorLink(self.services, cast(EngineThread, self.worker), WORKER, learns=False)
        self._background = Background()
        self._numbers = count()

    async def __aenter__(self) -> Self:
        self._link.start()
        self._background.start(self.feed.run(), "events")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background.stop()  # raises what it has failed with, as the link does
        await self._link.stop()

    def put(self, stream: Iterable[WorkflowEvent]) -> None:
        for event in stream:
            self.feed.put(event)

    def load(self, workflows: int) -> str:
        """Workflows of a workload beside those that are learnt; the first one's id."""
        names = [f"load-{next(self._numbers)}" for _ in range(workflows)]
        for name in names:
            self.put(events(name, "load", ("x", "y", "x", "z")))
        return names[0]

    def teach(self, rounds: int) -> None:
        """Four workflows of each workload in a round."""
        for number in range(4 * rounds):
            for workload, (first, second, often, seldom) in AGENTS.items():
                self.put(events(f"taught-{next(self._numbers)}", workload, (first, second, often if number % 4 else seldom)))

    async def halves(self) -> Probabilities:
        """What a new workflow of each workload that is half-way is forecast to do next."""
        names = {workload: f"half-{next(self._numbers)}" for workload in AGENTS}
        for workload, name in names.items():
            self.put(halfway(name, workload))
        await eventually(self.heard(*names.values()), PATIENCE_S, lambda: f"{self.decisions}")
        return {workload: next_agents(self.worker.heard[name]) for workload, name in names.items()}

    def heard(self, *names: str, above: int = -1) -> Callable[[], Awaitable[bool]]:
        """Whether the worker has forecasts of all these workflows that know of a second step, of a higher epoch."""

        async def heard() -> bool:
            found = [self.worker.heard.get(name) for name in names]
            return all(each is not None and each.step >= 1 and each.epoch > above for each in found)

        return heard


def next_agents(forecast: Forecast) -> dict[str, float]:
    """Probability of each agent, if the workflow goes on."""
    return dict(forecast.steps[0].agents)


def is_learnt(probabilities: Probabilities) -> bool:
    return all(
        abs(probabilities[workload].get(often, 0.0) - 0.75) < NEAR
        and abs(probabilities[workload].get(seldom, 0.0) - 0.25) < NEAR
        for workload, (_, _, often, seldom) in AGENTS.items()
    )


def is_near(some: Probabilities, others: Probabilities) -> bool:
    """Whether both give the next agents about the same probabilities; a few events may lie between them."""
    return all(
        some[workload].get(agent, 0.0) == pytest.approx(others[workload].get(agent, 0.0), abs=0.01)
        for workload, agents in AGENTS.items()
        for agent in agents[2:]
    )


def saved(state: Path) -> Probabilities:
    """What the saved state makes of workflows that are half-way."""
    restored, found = PREDICTORS.get("mixture")(PredictorConfig()), {}
    restored.load(state)
    for workload in AGENTS:
        for event in halfway(f"half-{workload}", workload):
            restored.observe(event)
        found[workload] = next_agents(*restored.forecast([f"half-{workload}"], 0, 0.0))
    return found


@pytest.mark.slow
async def test_a_predictor_killed_under_load_comes_back_with_what_it_had_learnt(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with Lines() as lines:
        worker, cache = lines.worker, lines.worker.played
        async with predictor(state) as (process, lines.services.address):
            before: Probabilities = {}

            async def learnt() -> bool:
                lines.teach(5)
                before.update(await lines.halves())
                return is_learnt(before)

            await eventually(learnt, PATIENCE_S, lambda: f"{before}")
            cache.step(0, "open", "test")
            lines.put(halfway("open", "app"))
            await eventually(lines.heard("open"), PATIENCE_S)

            async def kept() -> bool:
                before.update(await lines.halves())  # it may not have learnt from all when it was asked last
                return state.exists() and is_near(saved(state), before)

            await eventually(kept, PATIENCE_S)
            first = lines.load(40)

            async def at_work() -> bool:
                return first in worker.heard

            await eventually(at_work, PATIENCE_S)
            process.kill()
            assert await process.wait() == -signal.SIGKILL

        async def away() -> bool:
            lines.load(5)
            return not lines.feed.reachable and lines.decisions[Reason.EVENT_DROPPED] > 0

        await eventually(away, PATIENCE_S, lambda: f"{lines.decisions}")
        last, known = max(worker.epochs), len(worker.epochs)
        cache.step(1, "young")  # without a forecast
        worth = worker.worth("open")
        assert worth > worker.worth("young")
        cache.clock.advance(3 * CacheConfig().forecast_half_life_s)
        cache.step(2, "younger")
        assert worker.worth("young") < worker.worth("open") == worth < worker.worth("younger"), "an old forecast counts less"
        lines.services.address = None  # as when the lease of the one that was killed has run out

        async with predictor(state) as (_, lines.services.address):
            after = await lines.halves()
            for workload, (_, _, often, seldom) in AGENTS.items():
                for agent in (often, seldom):
                    assert after[workload].get(agent, 0.0) == pytest.approx(before[workload][agent], abs=0.02)
                assert max(after[workload], key=after[workload].__getitem__) == often
            lines.put([WorkflowEvent(EventKind.STEP_STARTED, "open", 7, 0.0, "app", "code", step=2)])
            await eventually(lines.heard("open", above=last), PATIENCE_S)
            assert min(worker.epochs[known:]) > last
            assert worker.worth("open") > worker.worth("younger"), "what it says counts again"
        cache.cache.check_integrity()
