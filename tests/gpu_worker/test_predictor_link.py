"""A worker's link to the predictor, without a worker: a stand-in for the engine's thread, a scripted predictor, real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.predictor_link.link import PredictorLink
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate
from pbkv_cluster.rpc.service_link import Phase
from pbkv_cluster.rpc.v1 import predictor_pb2
from tests.gpu_worker.worker_rig import ScriptedPredictor
from tests.polling import eventually
from tests.reuse.taught_models import dump, taught

MODEL = taught([[StepLog(0, "a", -1, 0, 0.0)]])


class EngineThreadStub:
    """Runs commands at once, on an engine whose cache applies updates to a model. Commands wait while `open` is not set."""

    def __init__(self) -> None:
        self.model = AccessModel()
        self.forecasts: list[Forecast] = []
        self.open = asyncio.Event()
        self.waiting = 0
        self._engine = SimpleNamespace(cache=self, workflows=None)
        self.workflows = SimpleNamespace(learnt=self.model.apply)

    def apply(self, forecast: Forecast) -> bool:
        self.forecasts.append(forecast)
        return True

    async def call(self, command: Callable[[Any], Any]) -> Any:
        if not self.open.is_set():
            self.waiting += 1
            await self.open.wait()
        return command(self._engine)


@asynccontextmanager
async def linked(learns: bool = True) -> AsyncIterator[tuple[PredictorLink, EngineThreadStub, ScriptedPredictor]]:
    predictor, thread = ScriptedPredictor(), EngineThreadStub()
    await predictor.start()
    link = PredictorLink(predictor, cast(EngineThread, thread), "w", learns)
    link.start()
    try:
        await eventually(lambda: len(predictor.subscribers) == 1)
        yield link, thread, predictor
    finally:
        await link.stop()
        await predictor.stop()


def forecast(workflow: str) -> Forecast:
    return Forecast(workflow, 1, made_at=1.0, steps=(StepForecast({"a": 1.0}, 1.0),))


async def test_forecasts_do_not_wait_for_a_model_update() -> None:
    async with linked() as (link, thread, predictor):
        assert link.model_updates is not None
        predictor.subscribers[0][1].put_nowait(predictor_pb2.ForecastBatch(access_model=dump(MODEL)))
        await eventually(lambda: thread.waiting == 1)
        release, thread.open = thread.open, asyncio.Event()
        thread.open.set()  # for commands that come later
        predictor.send([forecast("w1"), forecast("w2")])
        await eventually(lambda: link.forecasts.applied == 2)
        assert [each.workflow for each in thread.forecasts] == ["w1", "w2"]
        assert link.model_updates.applied == 0
        release.set()
        await eventually(lambda: link.model_updates is not None and link.model_updates.applied == 1)
        assert thread.model.export().workflows == MODEL.export().workflows == 1


async def test_updates_are_applied_in_order_and_a_damaged_one_is_skipped() -> None:
    async with linked() as (link, thread, predictor):
        thread.open.set()
        newer = taught([[StepLog(0, "a", -1, 0, 0.0)], [StepLog(0, "b", -1, 0, 0.0)]])
        for data in (dump(MODEL), b"nothing", dump(newer)):
            predictor.subscribers[0][1].put_nowait(predictor_pb2.ForecastBatch(access_model=data))
        await eventually(lambda: link.model_updates is not None and link.model_updates.applied == 2)
        assert link.model_updates is not None
        assert link.model_updates.workflows == 2
        assert thread.model.export().workflows == AccessUpdate.from_bytes(dump(newer)).workflows


async def test_without_learning_there_are_no_updates_and_no_logs() -> None:
    async with linked(learns=False) as (link, thread, predictor):
        thread.open.set()
        assert (link.model_updates, link.access_logs) == (None, None)
        predictor.subscribers[0][1].put_nowait(predictor_pb2.ForecastBatch(access_model=dump(MODEL)))
        predictor.send([forecast("w1")])
        await eventually(lambda: link.forecasts.applied == 1)
        assert thread.model.export().workflows == 0


async def test_its_state_is_that_of_the_subscription() -> None:
    async with linked() as (link, thread, predictor):
        thread.open.set()
        predictor.send([forecast("w1")])
        await eventually(lambda: (link.state.phase, link.state.address) == (Phase.CONNECTED, predictor.address))
        await predictor.stop()
        await eventually(lambda: link.state.phase is not Phase.CONNECTED and link.state.problem != "")
    assert link.state.phase is Phase.STOPPED
