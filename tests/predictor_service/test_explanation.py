"""Explanations of forecasts: from the predictor, over the wire, and as JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.cli.prediction.explain import explanation_json
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.predictor_service.predictor.explanation import Explanation
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import predictor_pb2
from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceStub

CONFIG = PredictorConfig(experts="markov,context-tree")


def events(name: str, agents: str, *, ends: bool = True, last_finishes: bool = True) -> Iterator[WorkflowEvent]:
    kinds = [(EventKind.WORKFLOW_STARTED, "")]
    for agent in agents:
        kinds += [(EventKind.STEP_STARTED, agent), (EventKind.STEP_FINISHED, agent)]
    if not last_finishes:
        kinds.pop()
    if ends:
        kinds.append((EventKind.WORKFLOW_ENDED, ""))
    for at, (kind, agent) in enumerate(kinds):
        yield WorkflowEvent(kind, name, at, float(at), "app", agent, step=max(0, (at - 1) // 2))


def taught() -> Predictor:
    """A predictor that knows workflows of agents a, b, a, c."""
    predictor = PREDICTORS.get("mixture")(CONFIG)
    for number in range(20):
        for event in events(f"taught-{number}", "abac"):
            predictor.observe(event)
            predictor.learn()
    return predictor


class Custom(Predictor):
    """Has no experts."""

    kind, version = "custom", 1

    def observe(self, event: WorkflowEvent) -> None:
        pass

    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        step = StepForecast({"x": 1.0}, 0.5)
        return Forecasts.of([Forecast(name, epoch, made_at, (step,), 0.25, 3) for name in workflows])

    def forget(self, workflow: str) -> None:
        pass

    def dump(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def test_each_expert_is_explained_with_its_weight() -> None:
    predictor = taught()
    for event in events("w", "aba", ends=False):
        predictor.observe(event)
    (forecast,) = predictor.forecast(["w"], 1, 0.0)
    found = predictor.explain("w")
    assert found is not None
    assert (found.workload, found.begun, found.output_known) == ("app", 3, True)
    assert tuple(found.steps) == forecast.steps
    assert found.predictability == forecast.predictability > 0
    assert [opinion.expert for opinion in found.opinions] == ["markov", "context-tree"]
    markov, tree = found.opinions
    for weights in zip(markov.weights, tree.weights, strict=True):
        assert sum(weights) == pytest.approx(1.0)
    assert markov.weights[0] < tree.weights[0], "one agent back does not tell b from c"
    assert tree.steps[0].agents["c"] > 0.9
    assert markov.steps[0].agents["c"] < 0.7


def test_explaining_changes_no_forecast() -> None:
    asked, silent = taught(), taught()
    for event in events("w", "abac"):
        asked.observe(event)
        silent.observe(event)
        for predictor in (asked, silent):
            predictor.forecast(["w"], 1, 0.0)
        asked.explain("w")
        asked.learn()
        silent.learn()
    assert asked.dump() == silent.dump()


def test_agents_may_come_between_a_forecast_and_its_explanation() -> None:
    predictor = taught()
    for event in events("w", "aba", ends=False):
        predictor.observe(event)
    (forecast,) = predictor.forecast(["w"], 1, 0.0)
    for name in ("x", "y"):
        for event in events(name, "new"):
            predictor.observe(event)
    found = predictor.explain("w")
    assert found is not None
    assert found.steps[0].agents["c"] > 0.9
    assert all(opinion.steps[0].agents.get("n", 0.0) < 0.01 for opinion in found.opinions)
    assert "n" not in forecast.steps[0].agents


def test_before_the_output_and_of_unknown_workflows() -> None:
    predictor = taught()
    for event in events("w", "ab", ends=False, last_finishes=False):
        predictor.observe(event)
    found = predictor.explain("w")
    assert found is not None
    assert (found.begun, found.output_known) == (2, False)
    assert predictor.explain("unheard of") is None


def test_predictors_without_experts_explain_by_the_forecast_alone() -> None:
    assert Custom().explain("w") == Explanation((StepForecast({"x": 1.0}, 0.5),), 0.25, begun=4)


async def test_over_the_wire() -> None:
    server = PredictorServer(CONFIG, predictor=taught())
    await server.start("127.0.0.1", 0)
    try:
        server.service.report([*events("open", "aba", ends=False), *events("over", "ab")])
        async with connect(server.address) as channel:
            stub = PredictorServiceStub(channel)
            request = predictor_pb2.ExplainRequest(workflow_id="open")
            answer = await stub.Explain(request, timeout=10)
            for name, status, details in (
                ("unheard of", StatusCode.NOT_FOUND, "the predictor has heard nothing of a workflow 'unheard of'"),
                ("over", StatusCode.NOT_FOUND, "workflow 'over' has ended"),
                ("", StatusCode.INVALID_ARGUMENT, "workflow_id: must not be empty"),
                ("x" * 60_000, StatusCode.INVALID_ARGUMENT, "workflow_id: at most 256 bytes, got 60000"),
            ):
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.Explain(predictor_pb2.ExplainRequest(workflow_id=name), timeout=10)
                assert (caught.value.code(), caught.value.details()) == (status, details)
    finally:
        await server.stop()
    assert answer.steps[0].agents[0].agent_id == "c"
    assert (answer.workload, answer.steps_begun, answer.output_known) == ("app", 3, True)
    as_json: dict[str, Any] = json.loads(json.dumps(explanation_json("open", answer)))
    assert [expert["name"] for expert in as_json["experts"]] == ["markov", "context-tree"]
    assert len(as_json["steps"]) == len(as_json["experts"][0]["weights"]) == 3
    assert as_json["steps"][0]["agents"]["c"] > 0.9
