"""The policy's learners: a real predictor behind a thread of its own, and the thread that learns in vLLM's process."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.access_log import AccessLog, Run, StepLog
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.integrations.vllm_policy.learning import BackgroundLearner, Knowledge
from pbkv_cluster.integrations.vllm_policy.predictor_feed import PredictorFeed, connect_as_configured
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.reuse.model.access_models import ANY, AccessModels
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import event_to_wire
from pbkv_cluster.rpc.security import Access, set_up_access
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc
from tests.certificates import Authority
from tests.polling import eventually, wait_for
from tests.secured import OPERATOR, secured


def _log(workflow: str) -> AccessLog:
    first = StepLog(0, "reader", -1, 0, 0.0, [Run(4)], ended_at=1.0)
    again = StepLog(1, "reader", 0, 4, 2.0, [Run(1)], ended_at=3.0)
    return AccessLog(workflow, [first, again])


class Reader:
    """Applies what a learner gives out, as the policy does."""

    def __init__(self, learner: Knowledge) -> None:
        self.learner = learner
        self.models = AccessModels()

    def workloads(self) -> list[str]:
        for update in self.learner.updates():
            self.models.apply(update)
        return self.models.workloads


@pytest.fixture
async def server() -> AsyncIterator[PredictorServer]:
    running = PredictorServer(PredictorConfig(access_interval_s=0.01))
    await running.start("127.0.0.1", 0)
    yield running
    await running.stop()


@pytest.fixture
def feed(server: PredictorServer) -> Iterator[PredictorFeed]:
    running = PredictorFeed(server.address, load_prior("off"))
    yield running
    running.close()


async def test_the_predictor_learns_and_sends_the_model(feed: PredictorFeed) -> None:
    reader = Reader(feed)
    feed.report(_log("x"))
    await eventually(lambda: ANY in reader.workloads())


async def test_forecasts_arrive_of_workflows_that_others_report(server: PredictorServer, feed: PredictorFeed) -> None:
    kinds = (EventKind.WORKFLOW_STARTED, ""), (EventKind.STEP_STARTED, "planner")
    events = [event_to_wire(WorkflowEvent(kind, "trip", at, float(at), "app", agent)) for at, (kind, agent) in enumerate(kinds)]
    async with connect(server.address) as channel:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        await stub.ReportEvents(predictor_pb2.ReportEventsRequest(events=events))
    found = list[str]()

    def arrived() -> bool:
        found.extend(forecast.workflow for forecast in feed.forecasts())
        return "trip" in found

    await eventually(arrived)


@pytest.mark.parametrize("tls", [True, False])
async def test_a_predictor_of_a_secured_cluster_lets_the_policy_in(tmp_path: Path, tls: bool) -> None:
    own = Authority(tmp_path).sign("member")
    files = {"tls_certificate": own.certificate, "tls_key": own.key, "tls_ca": own.ca} if tls else {}
    with secured(tmp_path, **files) as security:
        server = PredictorServer(PredictorConfig(access_interval_s=0.01))
        await server.start("127.0.0.1", 0)
        set_up_access(Access())
        connect_as_configured(security, {"PBKV_API_KEY": OPERATOR})
        feed = PredictorFeed(server.address, load_prior("off"))
        try:
            reader = Reader(feed)
            feed.report(_log("x"))
            await eventually(lambda: ANY in reader.workloads())
        finally:
            feed.close()
            await server.stop()


def test_without_a_predictor_the_prior_serves_and_closing_does_not_wait() -> None:
    feed = PredictorFeed("127.0.0.1:9", load_prior("default"))
    reader = Reader(feed)
    reader.workloads()
    assert reader.models.prior.version > 0
    feed.close()


def test_the_thread_learns_from_logs_and_gives_out_the_model() -> None:
    learner = BackgroundLearner(load_prior("default"))
    reader = Reader(learner)
    learner.report(_log("x"))
    wait_for(lambda: ANY in reader.workloads())
    learner.close()


def test_a_log_that_contradicts_itself_costs_only_itself() -> None:
    learner = BackgroundLearner(load_prior("default"))
    wrong = _log("wrong")
    wrong.steps[1].came_from = 7
    learner.report(wrong)
    learner.report(_log("x"))
    reader = Reader(learner)
    wait_for(lambda: ANY in reader.workloads())
    learner.close()
