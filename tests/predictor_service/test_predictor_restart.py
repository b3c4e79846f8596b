"""A predictor that is killed and restarted forecasts the open workflows as before: the gateway's feed tells it again."""

import asyncio
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph, StepNode
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc
from tests.polling import eventually
from tests.predictor_service.test_predictor_killed import PATIENCE_S, Services, predictor

GRAPH = StepGraph(
    (StepNode("plan"), StepNode("left", ("plan",)), StepNode("right", ("plan",)), StepNode("join", ("left", "right")))
)
OPEN = {
    "half": ("app", ["plan", "code"], None),
    "long": ("app", ["plan", "code", "test", "code", "test", "code", "test", "code"], None),
    "unnamed": ("", ["ask", "search", "read", "answer"], None),
    "new": ("app", [], None),
    "graph": ("declared", ["plan", "right"], GRAPH),
}


def events(name: str, workload: str, agents: list[str], graph: StepGraph | None, ends: bool = False) -> Iterator[WorkflowEvent]:
    numbers = count()
    yield WorkflowEvent(EventKind.WORKFLOW_STARTED, name, next(numbers), 1.0, workload, graph=graph)
    for step, agent in enumerate(agents):
        pieces = (ord(agent[0]), step)
        common: dict[str, Any] = {"step": step, "prompt_tokens": 100 + step, "call_site": f"site-{agent}"}
        yield WorkflowEvent(EventKind.STEP_STARTED, name, next(numbers), 2.0 + step, workload, agent, pieces=pieces, **common)
        yield WorkflowEvent(EventKind.STEP_PLACED, name, next(numbers), 2.0 + step, workload, worker="worker")
        yield WorkflowEvent(EventKind.STEP_FINISHED, name, next(numbers), 2.5 + step, workload, agent, words=(step,), **common)
    yield WorkflowEvent(EventKind.TOOL_STARTED, name, next(numbers), 50.0, workload, tool="run")
    if ends:
        yield WorkflowEvent(EventKind.WORKFLOW_ENDED, name, next(numbers), 99.0, workload)


async def explanations(address: str) -> dict[str, predictor_pb2.ExplainResponse]:
    async with connect(address) as channel:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        found = {name: await stub.Explain(predictor_pb2.ExplainRequest(workflow_id=name)) for name in OPEN}
    for each in found.values():
        each.ClearField("predictability")  # is measured now and then, and after a restart
    return found


def saved_all(state: Path) -> bool:
    """Whether the state has learnt from all events of the open workflows whose workload is known."""
    if not state.exists():
        return False
    restored = PREDICTORS.get("mixture")(PredictorConfig())
    assert isinstance(restored, ExpertPredictor)
    restored.load(state)
    for name, (workload, agents, graph) in OPEN.items():
        stream = list(events(name, workload, agents, graph))
        restored.observe(stream[0])
        known = restored.state_of(name)
        if workload != "declared" and (known is None or known.learnt_to != stream[-1].sequence):
            return False
    return True


@pytest.mark.slow
async def test_the_forecasts_of_open_workflows_are_as_before_a_kill(tmp_path: Path) -> None:
    services, background = Services(), Background()
    feed = EventFeed(services, Decisions())
    background.start(feed.run(), "events")
    try:
        async with predictor(tmp_path / "state") as (process, services.address):
            await eventually(lambda: feed.reachable, PATIENCE_S)  # or the open workflows would come first
            for number in range(12):
                for workload, agents in (
                    ("app", ["plan", "code", "test", "code", "test"][: 3 + number % 3]),
                    ("", ["ask", "search", "read", "answer"]),
                ):
                    for event in events(f"taught-{workload}-{number}", workload, agents, None, ends=True):
                        feed.put(event)
            for name, each in OPEN.items():
                for event in events(name, *each):
                    feed.put(event)

            async def saved() -> bool:
                return await asyncio.to_thread(saved_all, tmp_path / "state")

            await eventually(saved, PATIENCE_S)
            before = await explanations(services.address)
            process.kill()
            assert await process.wait() == -signal.SIGKILL
        services.address = None
        assert before["graph"].experts[2].steps, "the graph counts"
        async with predictor(tmp_path / "state") as (_, services.address):
            address = services.address

            async def same() -> bool:
                async with connect(address) as channel:
                    stub = predictor_pb2_grpc.PredictorServiceStub(channel)
                    known = await stub.Predict(predictor_pb2.PredictRequest(workflow_ids=list(OPEN)))
                return len(known.workflow_ids) == len(OPEN) and await explanations(address) == before

            await eventually(same, PATIENCE_S)
    finally:
        await background.stop()
