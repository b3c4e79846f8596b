"""What the predictor makes of access logs, over real gRPC: who gets which parts of the model; what becomes of wrong logs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.access_log import AccessLog, Run, StepLog
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.access import learner as learner_module
from pbkv_cluster.predictor_service.access.learner import AccessLearner, most_examples
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.predictor_service.access.versions import VersionedModels
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.predictor_service.state.file import access_path, write_state
from pbkv_cluster.reuse.model.access_model import KIND, VERSION, AccessModel, AccessUpdate
from pbkv_cluster.reuse.model.access_models import ANY, AccessModels, train
from pbkv_cluster.reuse.model.examples import examples
from pbkv_cluster.reuse.record.replay import replay
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord
from pbkv_cluster.rpc.access_logs import log_to_wire
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import event_to_wire
from pbkv_cluster.rpc.v1 import predictor_pb2
from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceStub
from pbkv_cluster.simulator.workload.access_logs import access_logs
from tests.polling import eventually
from tests.reuse.taught_models import contents
from tests.simulator.simulated import trace

LOGS = [log._replace(workflow=f"w{number}") for number, log in enumerate(access_logs(trace(12).workflows))]
CONTRADICTION = AccessLog("liar", [StepLog(0, "a", 5, 3, 0.0, [Run(2)])])
QUICK = PredictorConfig(access_interval_s=0.01)
PATIENCE_S = 30


@asynccontextmanager
async def serving(
    state: Path | None = None, config: PredictorConfig = QUICK, save_interval_s: float = 30.0
) -> AsyncIterator[PredictorServer]:
    server = PredictorServer(config, state_path=state, save_interval_s=save_interval_s)
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.stop()


async def report(server: PredictorServer, logs: Sequence[AccessLog]) -> tuple[int, int]:
    async with connect(server.address) as channel:
        request = predictor_pb2.ReportAccessRequest(logs=map(log_to_wire, logs))
        response = await PredictorServiceStub(channel).ReportAccess(request, timeout=PATIENCE_S)
    return response.accepted, response.dropped


async def learnt(server: PredictorServer, count: int) -> None:
    async def reached() -> bool:
        return server.learner.learnt == count

    await eventually(reached, PATIENCE_S, lambda: f"{server.learner.learnt} of {count}")


class Watcher:
    """A subscriber that makes a model of what it is sent."""

    def __init__(self, channel: aio.Channel, access_model: bool = True) -> None:
        request = predictor_pb2.WatchForecastsRequest(subscriber="watcher", access_model=access_model)
        self.batches = aiter(PredictorServiceStub(channel).WatchForecasts(request, timeout=60))
        self.models = AccessModels()
        self.seen: list[predictor_pb2.ForecastBatch] = []

    async def take(self) -> predictor_pb2.ForecastBatch:
        batch = await anext(self.batches)
        self.seen.append(batch)
        if batch.access_model:
            self.models.apply(AccessUpdate.from_bytes(batch.access_model))
        return batch

    async def until_equal(self, other: AccessModels) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not equal(self.models, other):
                await self.take()


def equal(first: AccessModels, second: AccessModels) -> bool:
    """Whether they rank alike, and drop the same next."""
    if first.workloads != second.workloads or contents(first.prior) != contents(second.prior):
        return False
    return all(contents(first.of(name)) == contents(second.of(name)) for name in first.workloads)


def model_of(logs: Sequence[AccessLog]) -> AccessModels:
    return train(logs, load_prior(QUICK.prior))


def saved(path: Path) -> AccessModels:
    """What a predictor has written beside the state in `path`."""
    kept, found = VersionedModels(load_prior(QUICK.prior)), AccessModels()
    kept.load(access_path(path))
    for part in kept.parts_since(0, 1 << 20):
        found.apply(AccessUpdate.from_bytes(part))
    return found


async def test_logs_go_in_and_a_model_comes_out() -> None:
    async with serving() as server, connect(server.address) as channel:
        watcher = Watcher(channel)
        assert (await watcher.take()).snapshot
        for start in range(0, 12, 3):
            assert await report(server, LOGS[start : start + 3]) == (3, 0)
            await watcher.until_equal(model_of(LOGS[: start + 3]))
        assert not any(batch.workflow_ids or batch.snapshot for batch in watcher.seen[1:])


async def test_a_subscriber_that_comes_late_or_lags_is_sent_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "PART_BYTES", 40_000)
    async with serving() as server, connect(server.address) as channel, connect(server.address) as other:
        brisk, lags = Watcher(channel), Watcher(other)
        await brisk.take()
        await report(server, LOGS[:4])
        await brisk.until_equal(model_of(LOGS[:4]))
        await report(server, LOGS[4:])
        await brisk.until_equal(model_of(LOGS))
        first = await lags.take()
        assert first.snapshot
        assert not first.access_model, "it comes behind the snapshot"
        await lags.until_equal(model_of(LOGS))
        late = Watcher(channel)
        await late.until_equal(model_of(LOGS))
        assert [batch.snapshot for batch in late.seen] == [True] + [False] * (len(late.seen) - 1)
        assert len(late.seen) > 10, "it came in parts"
        assert all(len(batch.access_model) < 50_000 for batch in late.seen)


async def test_one_that_stops_reading_costs_no_parts_beyond_those_that_it_was_given() -> None:
    async with serving() as server:
        stuck = server.service.subscribe("stuck")
        server.learner.feed(stuck)
        server.learner.report(LOGS[:3])
        await learnt(server, 3)
        assert not stuck.idle, "it has not even asked for its snapshot"
        assert (await anext(stuck)).snapshot
        assert (await asyncio.wait_for(anext(stuck), PATIENCE_S)).access
        models = AccessModels()

        async def complete() -> bool:
            server.learner.report([])
            models.apply(AccessUpdate.from_bytes((await anext(stuck)).access))
            return stuck.idle

        if not stuck.idle:
            await eventually(complete, PATIENCE_S)
        stuck.close()
        server.learner.report(LOGS[3:5])
        await learnt(server, 5)


async def test_forecasts_come_beside_and_who_does_not_ask_gets_forecasts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "PART_BYTES", 40_000)
    async with serving() as server, connect(server.address) as channel:
        stub = PredictorServiceStub(channel)
        plain, watcher = Watcher(channel, access_model=False), Watcher(channel)
        await plain.take()
        await watcher.take()
        await report(server, LOGS)
        started = WorkflowEvent(EventKind.STEP_STARTED, "running", 1, 1.0, "app", "a")
        await stub.ReportEvents(predictor_pb2.ReportEventsRequest(events=[event_to_wire(started)]), timeout=PATIENCE_S)
        assert (await plain.take()).workflow_ids == ["running"]
        await watcher.until_equal(model_of(LOGS))
        while not any(batch.workflow_ids for batch in watcher.seen):
            await watcher.take()
        assert not any(batch.access_model for batch in plain.seen)


async def test_a_log_that_contradicts_itself_is_refused_and_learning_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, connect(server.address) as channel:
        watcher = Watcher(channel)
        assert await report(server, [LOGS[0], CONTRADICTION, LOGS[1]]) == (3, 0)
        await watcher.until_equal(model_of(LOGS[:2]))
        assert (server.learner.learnt, server.learner.refused) == (2, 1)
        (record,) = [each for each in caplog.records if "nothing is learnt" in each.message]
        assert record.message.endswith(": came_from is 5, but only 0 steps came before")
        assert record.workflow == "liar"  # type: ignore[attr-defined]  # a field of ours


async def test_a_malformed_log_is_refused_with_its_whole_batch() -> None:
    wrong = AccessLog("w", [StepLog(0, "", -1, 0, 0.0)])
    async with serving() as server:
        with pytest.raises(aio.AioRpcError) as raised:
            await report(server, [LOGS[0], wrong])
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert raised.value.details() == "logs[1].steps[0].agent_id: must not be empty"
        assert (server.learner.learnt, server.learner.queued) == (0, 0)


async def test_a_log_that_would_take_too_long_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(learner_module, "MAX_EXAMPLES", most_examples(LOGS[0].steps))
    longer = AccessLog("longer", [*LOGS[0].steps, StepLog(99, "a", -1, 0, 0.0)])
    async with serving() as server:
        await report(server, [longer, LOGS[0]])
        await learnt(server, 1)
        assert server.learner.refused == 1
        assert f"an ended workflow: its {len(longer.steps)} steps are too many" in caplog.text


def test_the_bound_on_the_work_is_one() -> None:
    for log in LOGS:
        history, total = WorkflowRecord(), 0
        for step in log.steps:
            replay(history, step)
            total += len(history.segments)
        assert total <= most_examples(log.steps) < 4 * total
        assert len(examples(log.steps, AccessModel().events).facts) <= most_examples(log.steps)


async def test_the_queue_is_bounded_and_the_oldest_leave() -> None:
    learner = AccessLearner(0.01, max_queued_steps=sum(len(log.steps) for log in LOGS[-2:]))
    taken = learner.report(LOGS)
    assert (taken.accepted, taken.dropped, learner.dropped, learner.queued) == (12, 10, 10, 2)
    running = asyncio.create_task(learner.run())

    async def done() -> bool:
        return learner.learnt == 2

    await eventually(done, PATIENCE_S)
    running.cancel()
    await asyncio.wait([running])
    await learner.close()


async def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state"
    async with serving(path) as server:
        await report(server, LOGS[:6])
        await learnt(server, 6)
    async with serving(path) as server, connect(server.address) as channel:
        watcher = Watcher(channel)
        await watcher.until_equal(model_of(LOGS[:6]))
        await report(server, LOGS[6:])
        await watcher.until_equal(model_of(LOGS))
    assert saved(path).of(ANY).export().workflows == 12


async def test_it_is_saved_while_it_runs_and_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    async with serving(path, save_interval_s=0.01) as server:
        await report(server, LOGS[:2])

        async def written() -> bool:
            return access_path(path).exists() and saved(path).of(ANY).export().workflows == 2

        await eventually(written, PATIENCE_S)
        access_path(path).unlink()
    assert not access_path(path).exists(), "nothing was learnt since"


@pytest.mark.parametrize("content", [b"something else", b""])
async def test_a_saved_model_that_does_not_fit_is_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    access_path(path).write_bytes(content)
    async with serving(path) as server:
        await report(server, LOGS[:1])
        await learnt(server, 1)
    assert "learning starts over" in caplog.text
    assert (tmp_path / "state.access.refused").read_bytes() == content
    assert saved(path).of(ANY).export().workflows == 1


async def test_a_model_of_another_version_or_shape_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    for kind, version, payload, why in (
        ("markov", VERSION, b"", "holds the state of the predictor 'markov', not of 'access'"),
        (KIND, VERSION + 1, b"", f"this program reads {VERSION}"),
        (KIND, VERSION, b"{}", "it is not a saved state"),
    ):
        write_state(access_path(path), kind, version, payload)
        async with serving(path) as server:
            assert server.learner.learnt == 0
        assert why in caplog.text
        assert not access_path(path).exists()
