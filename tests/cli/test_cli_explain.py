"""`pbkv predictor explain` against a real predictor, found through a gateway."""

import json
from collections.abc import Iterator

import pytest

from pbkv_cluster.predictor_service.server import PredictorServer
from tests.cli.conftest import LoopThread, Pbkv
from tests.predictor_service.test_explanation import CONFIG, events, taught
from tests.simulator.recording_gateway import RecordingGateway


@pytest.fixture
def predictor(gateway: RecordingGateway, loop_thread: LoopThread) -> Iterator[None]:
    """A predictor in a thread of its own; the workflow `mine` is open."""

    async def start() -> PredictorServer:
        server = PredictorServer(CONFIG, predictor=taught())
        gateway.predictor_address = await server.start("127.0.0.1", 0)
        server.service.report([*events("mine", "aba", ends=False), *events("over", "ab")])
        return server

    server = loop_thread.run(start())
    yield
    loop_thread.run(server.stop())


@pytest.mark.usefixtures("predictor")
def test_shows_the_forecast_and_the_experts(pbkv: Pbkv, endpoint: str) -> None:
    done = pbkv("predictor", "explain", "mine", "--endpoint", endpoint)
    assert done.code == 0, done.err
    assert "Workflow mine of workload app: after step 2, its output known; predictability 0." in done.out
    forecast, experts = done.out.split("By expert")
    (line,) = [line for line in forecast.splitlines() if "+1" in line]
    assert "c 9" in line, "the likeliest agent comes first"
    assert [name in experts for name in ("markov", "context-tree")] == [True, True]
    assert experts.count("markov") == 3, "once for each step"


@pytest.mark.usefixtures("predictor")
def test_as_json(pbkv: Pbkv, endpoint: str) -> None:
    written = json.loads(pbkv("predictor", "explain", "mine", "--endpoint", endpoint, "--json", "-").out)
    assert (written["workflow"], written["workload"], written["steps_begun"]) == ("mine", "app", 3)
    assert written["steps"][0]["agents"]["c"] > 0.9
    assert [expert["name"] for expert in written["experts"]] == ["markov", "context-tree"]


@pytest.mark.usefixtures("predictor")
@pytest.mark.parametrize(
    ("workflow", "problem"),
    [("nobodys", "the predictor has heard nothing of a workflow 'nobodys'"), ("over", "workflow 'over' has ended")],
)
def test_only_open_workflows_can_be_explained(pbkv: Pbkv, endpoint: str, workflow: str, problem: str) -> None:
    done = pbkv("predictor", "explain", workflow, "--endpoint", endpoint)
    assert done.code == 1
    assert problem in done.err


def test_without_a_predictor(pbkv: Pbkv, endpoint: str) -> None:
    done = pbkv("predictor", "explain", "mine", "--endpoint", endpoint)
    assert done.code == 1
    assert f"the gateway at {endpoint} reaches no predictor" in done.err
