"""What a worker and the predictor tell each other of finished workflows: a real worker, a real predictor, real gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.core.access_log import StepLog
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.predictor_link import access_logs as access_logs_module
from pbkv_cluster.gpu_worker.predictor_link import forecasts as forecasts_module
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.reuse.model.access_model import AccessModel, train
from pbkv_cluster.rpc.v1 import predictor_pb2
from tests.gpu_worker.worker_rig import Rig, ScriptedPredictor, config, eventually, serving, step

QUICK = PredictorConfig(access_interval_s=0.01)
LEARNING = {"policy": "pbkv"}
AGENTS = ("planner", "coder", "tester")


@pytest.fixture
def llama(model_dirs: dict[str, Path]) -> Path:
    return model_dirs["llama"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A predictor that is away is looked for again at once."""
    for module in (forecasts_module, access_logs_module):
        monkeypatch.setattr(module, "_PAUSE_S", 0.01)


class Address:
    """Where the predictor is, for workers."""

    def __init__(self) -> None:
        self.now: str | None = None

    async def __call__(self) -> str | None:
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


async def workflow(rig: Rig, name: str) -> None:
    """Each agent's prompt is what the workflow has said so far; its first block is everyone's."""
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
    thread = rig.worker._thread
    assert thread is not None
    return await thread.call(lambda engine: contents(policy_of(engine)._outlook.model))


def contents(model: AccessModel) -> tuple[object, ...]:
    update = model.export()
    counts = {context: dict(events) for context, events in update.contexts}
    return update.places.tolist(), update.chances.tolist(), update.weights.tolist(), counts


async def knows(rig: Rig, workflows: int) -> None:
    async def reached() -> bool:
        return (await rig.status()).access_workflows == workflows

    await eventually(reached)


async def test_what_ended_is_learnt_and_comes_back_to_every_worker(llama: Path) -> None:
    address = Address()
    settings = config(llama, cache=LEARNING)
    async with predictor(address) as server, serving(settings, "one", predictor=address) as one:
        async with serving(settings, "two", predictor=address) as two:
            for count in (1, 2, 3):
                await workflow(one, f"w{count}")
                await knows(one, count)
                await knows(two, count)
            learnt = contents(server.learner._model._model)
            assert len(learnt[0]) > 100  # type: ignore[arg-type]
            for rig in (one, two):

                async def same(rig: Rig = rig) -> bool:
                    return await model_of(rig) == learnt

                await eventually(same)
                assert (await rig.status()).access_updates_applied >= 3
        assert (await one.decisions())["access_log_sent"] == 3
        assert server.learner.refused == 0


async def test_the_log_is_that_of_the_cache_itself_and_told_once(llama: Path) -> None:
    told: list[tuple[str, list[StepLog]]] = []
    address = Address()
    async with predictor(address) as server, serving(config(llama, cache=LEARNING), predictor=address) as rig:
        thread = rig.worker._thread
        assert thread is not None

        def listen(engine: Engine) -> None:
            inner = engine.cache.workflows.on_ended
            assert inner is not None
            assert isinstance(engine.cache.observer, Guard)
            assert all(shadow.cache.workflows.on_ended is None for shadow in engine.cache.observer.shadows)

            def both(name: str, steps: list[StepLog]) -> None:
                told.append((name, list(steps)))
                inner(name, steps)

            engine.cache.workflows.on_ended = both  # type: ignore[assignment]

        await thread.call(listen)
        await workflow(rig, "w")
        await rig.retire("w")
        await knows(rig, 1)
        ((name, steps),) = told
        assert name == "w"
        assert [log.agent for log in steps] == list(AGENTS)
        assert contents(server.learner._model._model) == contents(train([steps]))


async def test_a_step_that_still_runs_when_its_workflow_ends_does_no_harm(llama: Path) -> None:
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
async def test_a_policy_that_does_not_learn_sends_nothing_and_asks_for_nothing(llama: Path, policy: str) -> None:
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


async def test_logs_wait_for_a_predictor_that_is_away_and_for_the_next(llama: Path, tmp_path: Path) -> None:
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
    monkeypatch.setattr(access_logs_module, "_QUEUED_STEPS", 2 * len(AGENTS))
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


async def test_one_refused_log_takes_no_other_with_it(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = Address()
    async with serving(config(llama, cache=LEARNING), predictor=address) as rig:
        await workflow(rig, "before")
        await rig.run(step([7] * 40, workflow_id="nameless", agent_id=""))
        await rig.retire("nameless")
        await workflow(rig, "behind")
        async with predictor(address):
            await knows(rig, 2)
            decisions = await rig.decisions()
            assert (decisions["access_log_sent"], decisions["access_log_refused"]) == (2, 1)
    assert "refuses the access log of workflow 'nameless': logs[0].steps[0].agent_id: must not be empty" in caplog.text


class Killed(ScriptedPredictor):
    """Takes logs only when it is told to, and is gone when it likes."""

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


async def test_what_a_killed_predictor_had_not_answered_for_goes_to_the_next(llama: Path) -> None:
    scripted = Killed()
    await scripted.start()
    async with serving(config(llama, cache=LEARNING), predictor=scripted.where) as rig:
        await workflow(rig, "first")
        await scripted.asked.wait()
        await workflow(rig, "second")
        await scripted.stop()
        scripted.answers = True
        await scripted.start()
        await eventually(lambda: scripted.logs == ["first", "second"])
    await scripted.stop()


async def test_a_damaged_update_is_left_out_and_the_next_is_applied(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedPredictor()
    await scripted.start()
    model = train([[StepLog(0, "a", -1, 0, 0.0)]])
    async with serving(config(llama, cache=LEARNING), predictor=scripted.where) as rig:
        await eventually(lambda: bool(scripted.subscribers))
        queue = scripted.subscribers[0][1]
        good = model.dump()
        for data in (b"nothing", good[: len(good) // 2], good):
            queue.put_nowait(predictor_pb2.ForecastBatch(access_model=data))
        await knows(rig, 1)
        assert (await rig.status()).access_updates_applied == 1
        assert await model_of(rig) == contents(model)
        assert (await rig.run(step([7] * 30))).tokens
    assert caplog.text.count("an update from the predictor is left out: not an access model") == 2
    await scripted.stop()


async def test_a_worker_that_starts_late_gets_what_a_trained_predictor_knows(llama: Path, tmp_path: Path) -> None:
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
