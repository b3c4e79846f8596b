"""Access logs and model updates between a real worker and a real predictor, over real gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc import aio

from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.core.background import Background
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.access_log import AccessLog, StepLog
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.predictor_link import access_logs as access_logs_module
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.model.access_models import ANY, AccessModels, train
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc
from tests.gpu_worker.worker_rig import Rig, ScriptedPredictor, config, serving, step
from tests.polling import eventually
from tests.reuse.taught_models import contents, dump, taught

QUICK = PredictorConfig(access_interval_s=0.01)
LEARNING = {"policy": "pbkv"}
AGENTS = ("planner", "coder", "tester")


class Address:
    """Where workers find the predictor."""

    def __init__(self) -> None:
        self.now: str | None = None

    async def service_address(self, name: str) -> str | None:
        return self.now


@asynccontextmanager
async def predictor(address: Address, state: Path | None = None) -> AsyncIterator[PredictorServer]:
    server = PredictorServer(QUICK, state_path=state)
    address.now = await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        address.now = None
        await server.stop()


@asynccontextmanager
async def watched_model(server: PredictorServer) -> AsyncIterator[AccessModels]:
    """The predictor's access models, put together from the updates that it sends."""
    models = AccessModels()

    async def watch(channel: aio.Channel) -> None:
        request = predictor_pb2.WatchForecastsRequest(subscriber="watcher", access_model=True)
        async for batch in predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(request):
            if batch.access_model:
                models.apply(AccessUpdate.from_bytes(batch.access_model))

    background = Background()
    async with connect(server.address) as channel:
        background.start(watch(channel), "access model")
        try:
            yield models
        finally:
            await background.stop()


async def workflow(rig: Rig, name: str) -> None:
    """Runs a workflow. Each agent's prompt is all text so far; all workflows share its first block."""
    said = [7] * 20 + [sum(name.encode()) % 1000 + 50] * 20
    for number, agent in enumerate(AGENTS):
        answer = await rig.run(step(said, workflow_id=name, agent_id=agent, step=number))
        said = said + answer.tokens + [number + 9] * 10
    await rig.retire(name)


def policy_of(engine: Engine) -> Pbkv:
    policy = engine.cache.policies[0]
    assert isinstance(policy, Pbkv)
    return policy


async def model_of(rig: Rig) -> tuple[object, ...]:
    """A copy of what the worker's policy knows."""
    return await rig.worker.thread.call(lambda engine: contents(policy_of(engine).models.of(ANY)))


async def knows(rig: Rig, workflows: int) -> None:
    async def reached() -> bool:
        return (await rig.status()).access_workflows == workflows

    await eventually(reached)


async def test_ended_workflows_are_learnt_from_and_every_worker_gets_the_model(llama: Path) -> None:
    address = Address()
    settings = config(llama, cache=LEARNING)
    async with predictor(address) as server, serving(settings, "one", predictor=address) as one:
        async with serving(settings, "two", predictor=address) as two:
            for count in (1, 2, 3):
                await workflow(one, f"w{count}")
                await knows(one, count)
                await knows(two, count)
            async with watched_model(server) as learnt:
                for rig in (one, two):

                    async def same(rig: Rig = rig) -> bool:
                        return len(learnt) > 0 and await model_of(rig) == contents(learnt.of(ANY))

                    await eventually(same)
                    assert (await rig.status()).access_updates_applied >= 3
        assert (await one.decisions())["access_log_sent"] == 3
        assert server.learner.refused == 0


async def test_the_log_is_the_caches_own_and_is_sent_once(llama: Path) -> None:
    sent: list[AccessLog] = []
    address = Address()
    async with predictor(address) as server, serving(config(llama, cache=LEARNING), predictor=address) as rig:

        def listen(engine: Engine) -> None:
            inner = engine.cache.workflows.on_ended
            assert inner is not None
            assert isinstance(engine.cache.observer, Guard)
            assert all(shadow.cache.workflows.on_ended is None for shadow in engine.cache.observer.shadows)

            def both(ended: AccessLog) -> None:
                sent.append(ended._replace(steps=list(ended.steps)))
                inner(ended)

            engine.cache.workflows.on_ended = both

        await rig.worker.thread.call(listen)
        await workflow(rig, "w")
        await rig.retire("w")
        await knows(rig, 1)
        (ended,) = sent
        assert ended.workflow == "w"
        assert [log.agent for log in ended.steps] == list(AGENTS)
        expected = contents(train([ended], load_prior("default")).of(ANY))
        async with watched_model(server) as learnt:
            await eventually(lambda: contents(learnt.of(ANY)) == expected)
        assert (await rig.decisions())["access_log_sent"] == server.learner.learnt == 1, "the guard's shadows send none"


async def test_a_step_may_outlast_its_workflow(llama: Path) -> None:
    address = Address()
    async with predictor(address) as server, serving(config(llama, cache=LEARNING), predictor=address) as rig:
        await rig.run(step([7] * 40))
        call = rig.call(step([7] * 40, step=1, sampling={"max_tokens": 400}))
        await call.read()
        await rig.retire("w")
        await knows(rig, 1)
        call.cancel()
        await eventually(rig.idle)
        assert server.learner.refused == 0


@pytest.mark.parametrize("policy", ["lru", "pbkv-paper"])
async def test_a_policy_that_does_not_learn_sends_no_logs_and_gets_no_model(llama: Path, policy: str) -> None:
    address = Address()
    async with predictor(address) as server:
        async with serving(config(llama, cache=LEARNING), "learns", predictor=address) as rig:
            await workflow(rig, "w")
            await knows(rig, 1)
        async with serving(config(llama, cache={"policy": policy}), predictor=address) as rig:
            await eventually(lambda: server.service.subscribers == 1)
            await workflow(rig, "x")
            status = await rig.status()
            assert (status.access_updates_applied, status.access_workflows) == (0, 0)
            assert not [reason for reason in status.store.decisions if reason.startswith("access")]
        assert server.learner.learnt == 1


async def test_logs_wait_while_there_is_no_predictor(llama: Path, tmp_path: Path) -> None:
    address = Address()
    async with serving(config(llama, cache=LEARNING), predictor=address) as rig:
        await workflow(rig, "early")
        async with predictor(address, tmp_path / "state"):
            await knows(rig, 1)
        for name in ("x", "y"):
            await workflow(rig, name)
        async with predictor(address, tmp_path / "state") as server:
            await knows(rig, 3)
            assert server.learner.learnt == 2
        assert (await rig.decisions())["access_log_sent"] == 3


async def test_beyond_the_bound_the_oldest_are_dropped_and_counted(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_logs_module, "MAX_QUEUED_STEPS", 2 * len(AGENTS))
    address = Address()
    async with serving(config(llama, cache=LEARNING), predictor=address) as rig:
        for number in range(5):
            await workflow(rig, f"w{number}")

        async def dropped() -> bool:
            return (await rig.decisions()).get("access_log_dropped") == 3

        await eventually(dropped)
        async with predictor(address) as server:
            await knows(rig, 2)
            assert server.learner.learnt == 2


async def test_a_refused_log_does_not_cost_the_others_of_its_batch(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = Address()
    async with serving(config(llama, cache=LEARNING), predictor=address) as rig:
        await workflow(rig, "before")
        await rig.run(step([7] * 40, workflow_id="nameless", agent_id=""))
        await rig.retire("nameless")
        await workflow(rig, "after")
        async with predictor(address):
            await knows(rig, 2)
            decisions = await rig.decisions()
            assert (decisions["access_log_sent"], decisions["access_log_refused"]) == (2, 1)
    (record,) = [each for each in caplog.records if "refuses an access log" in each.message]
    assert record.message.endswith(": logs[0].steps[0].agent_id: must not be empty")
    assert record.workflow == "nameless"  # type: ignore[attr-defined]  # a field of ours


class StuckPredictor(ScriptedPredictor):
    """Answers only if `answers` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.logs: list[str] = []
        self.answers = False

    async def ReportAccess(  # noqa: N802
        self, request: predictor_pb2.ReportAccessRequest, context: object
    ) -> predictor_pb2.ReportAccessResponse:
        self.asked.set()
        if not self.answers:
            await asyncio.Event().wait()
        self.logs += [log.workflow_id for log in request.logs]
        return predictor_pb2.ReportAccessResponse(accepted=len(request.logs))


async def test_logs_that_a_killed_predictor_did_not_acknowledge_are_sent_to_the_next(llama: Path) -> None:
    scripted = StuckPredictor()
    await scripted.start()
    async with serving(config(llama, cache=LEARNING), predictor=scripted) as rig:
        await workflow(rig, "first")
        await scripted.asked.wait()
        await workflow(rig, "second")
        await scripted.stop()
        scripted.answers = True
        await scripted.start()
        await eventually(lambda: scripted.logs == ["first", "second"])
    await scripted.stop()


async def test_a_damaged_update_is_skipped_and_the_next_is_applied(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedPredictor()
    await scripted.start()
    model = taught([[StepLog(0, "a", -1, 0, 0.0)]])
    async with serving(config(llama, cache=LEARNING), predictor=scripted) as rig:
        await eventually(lambda: bool(scripted.subscribers))
        queue = scripted.subscribers[0][1]
        good = dump(model)
        for data in (b"nothing", good[: len(good) // 2], good):
            queue.put_nowait(predictor_pb2.ForecastBatch(access_model=data))
        await knows(rig, 1)
        assert (await rig.status()).access_updates_applied == 1
        assert await model_of(rig) == contents(model)
        assert (await rig.run(step([7] * 30))).tokens
    assert caplog.text.count("a model update is skipped: not an access model") == 2
    await scripted.stop()


async def test_a_worker_that_starts_late_gets_the_whole_model(llama: Path, tmp_path: Path) -> None:
    address = Address()
    state = tmp_path / "state"
    async with predictor(address, state), serving(config(llama, cache=LEARNING), predictor=address) as rig:
        await workflow(rig, "w")
        await knows(rig, 1)
        learnt = await model_of(rig)
    async with (
        predictor(address, state),
        serving(config(llama, cache={**LEARNING, "guard": False}), predictor=address) as rig,
    ):
        await knows(rig, 1)

        async def same() -> bool:
            return await model_of(rig) == learnt

        await eventually(same)
