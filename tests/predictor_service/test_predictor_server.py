"""The predictor over real gRPC on the loopback."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service import servicer
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.predictor_service.state.encoding import to_bytes
from pbkv_cluster.predictor_service.state.file import write_state
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import event_to_wire, forecasts_from_wire
from pbkv_cluster.rpc.v1 import predictor_pb2, types_pb2
from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceStub
from tests.polling import eventually

SERVICE = "pbkv.v1.PredictorService"


def events(name: str, agents: str, *, ends: bool = True) -> list[predictor_pb2.WorkflowEvent]:
    kinds = [(EventKind.WORKFLOW_STARTED, ""), *((EventKind.STEP_STARTED, agent) for agent in agents)]
    if ends:
        kinds.append((EventKind.WORKFLOW_ENDED, ""))
    values = [WorkflowEvent(kind, name, at, float(at), "app", agent) for at, (kind, agent) in enumerate(kinds)]
    return [event_to_wire(value) for value in values]


def started(**fields: Any) -> predictor_pb2.WorkflowEvent:
    """The start of a step."""
    kind = predictor_pb2.EVENT_KIND_STEP_STARTED
    return predictor_pb2.WorkflowEvent(kind=kind, workflow_id="w", agent_id="a", **fields)


@pytest.fixture
async def server() -> AsyncIterator[PredictorServer]:
    running = PredictorServer(PredictorConfig())
    await running.start("127.0.0.1", 0)
    yield running
    await running.stop()


@pytest.fixture
async def channel(server: PredictorServer) -> AsyncIterator[aio.Channel]:
    async with connect(server.address) as channel:
        yield channel


async def report(channel: aio.Channel, batch: Sequence[predictor_pb2.WorkflowEvent]) -> tuple[int, int]:
    response = await PredictorServiceStub(channel).ReportEvents(predictor_pb2.ReportEventsRequest(events=batch), timeout=10)
    return response.accepted, response.ignored


class Stream:
    """A stream of events."""

    def __init__(self, channel: aio.Channel) -> None:
        self._call = PredictorServiceStub(channel).StreamEvents(timeout=30)
        self._answers = aiter(self._call)

    async def send(self, batch: Sequence[predictor_pb2.WorkflowEvent]) -> None:
        await self._call.write(predictor_pb2.ReportEventsRequest(events=batch))

    async def ask(self) -> tuple[int, int]:
        await self.send(())
        return await self.answer()

    async def answer(self) -> tuple[int, int]:
        answer = await anext(self._answers)
        return answer.accepted, answer.ignored


async def predict(channel: aio.Channel, *names: str) -> list[Forecast]:
    request = predictor_pb2.PredictRequest(workflow_ids=names)
    return list(forecasts_from_wire(await PredictorServiceStub(channel).Predict(request, timeout=10)))


async def test_events_go_in_and_forecasts_come_out(channel: aio.Channel) -> None:
    for number in range(20):
        assert await report(channel, events(str(number), "ab")) == (4, 0)
    assert await report(channel, events("w", "a", ends=False)) == (2, 0)
    assert await report(channel, events("1", "ab")) == (0, 4)
    watch = PredictorServiceStub(channel).WatchForecasts(predictor_pb2.WatchForecastsRequest(subscriber="test"), timeout=30)
    batches = aiter(watch)
    first = await anext(batches)
    assert first.snapshot
    (forecast,) = forecasts_from_wire(first)
    assert forecast.workflow == "w"
    assert forecast.steps[0].agents["b"] > 0.9
    epoch = forecast.epoch

    await report(channel, events("w", "ab")[2:3])
    forecast = await next_about(batches, "w", epoch)
    assert not forecast.ended
    assert forecast.steps[0].survival < 0.2

    await report(channel, events("w", "ab")[3:])
    while not forecast.ended:
        forecast = await next_about(batches, "w", forecast.epoch)
    assert forecast.steps == ()
    watch.cancel()


async def next_about(batches: AsyncIterator[predictor_pb2.ForecastBatch], name: str, epoch: int) -> Forecast:
    """The next forecast of a workflow with an epoch above `epoch`, after one that knows the latest step."""
    while True:
        for forecast in forecasts_from_wire(await anext(batches)):
            if forecast.workflow == name and forecast.epoch > epoch and (forecast.ended or forecast.steps[0].survival < 0.5):
                return forecast


async def test_predict(channel: aio.Channel) -> None:
    await report(channel, [*events("1", "ab"), *events("w", "a", ends=False)])
    known, over = await predict(channel, "w", "unheard", "1")
    assert (known.workflow, known.ended, len(known.steps)) == ("w", False, 3)
    assert 0.0 < sum(known.steps[0].agents.values()) <= 1.0 + 1e-5
    assert (over.workflow, over.ended) == ("1", True)
    assert await predict(channel) == []


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (predictor_pb2.WorkflowEvent(workflow_id="w"), "events.kind"),
        (predictor_pb2.WorkflowEvent(kind=predictor_pb2.EVENT_KIND_STEP_STARTED, agent_id="a"), "events.workflow_id"),
        (predictor_pb2.WorkflowEvent(kind=predictor_pb2.EVENT_KIND_STEP_STARTED, workflow_id="w"), "events.agent_id"),
        (
            predictor_pb2.WorkflowEvent(kind=predictor_pb2.EVENT_KIND_WORKFLOW_ENDED, workflow_id="w", sequence=-5),
            "events.sequence",
        ),
        (
            predictor_pb2.WorkflowEvent(kind=predictor_pb2.EVENT_KIND_WORKFLOW_ENDED, workflow_id="w", time_s=float("inf")),
            "events.time_s",
        ),
        (started(step=-1), "events.step"),
        (started(pieces=[7] * 129), "events.pieces"),
        (started(words=[2**32 - 1]), "events.words"),
        (started(hidden=b"\0\x7c"), "events.hidden"),
        (started(step_graph=types_pb2.StepGraph()), "events.step_graph.nodes"),
    ],
)
async def test_bad_events_name_their_field(channel: aio.Channel, message: predictor_pb2.WorkflowEvent, field: str) -> None:
    with pytest.raises(aio.AioRpcError) as raised:
        await report(channel, [*events("good", "a", ends=False), message])
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert (raised.value.details() or "").startswith(f"{field}: ")
    assert await predict(channel, "good") == []


async def test_a_stream_tells_how_far_it_is_when_it_is_asked(channel: aio.Channel) -> None:
    stream = Stream(channel)
    assert await stream.ask() == (0, 0)
    for part in ("ab", "abcd"):
        await stream.send(events("w", part, ends=False))
    assert await stream.ask() == (5, 3), "the first three are known by then"
    assert await stream.ask() == (5, 3)
    await stream.send(events("1", "a"))
    assert await stream.ask() == (8, 3)
    assert [forecast.ended for forecast in await predict(channel, "w", "1")] == [False, True]


async def test_a_bad_event_ends_a_stream_which_tells_what_was_taken_before(channel: aio.Channel) -> None:
    stream = Stream(channel)
    for name in ("1", "2"):
        await stream.send(events(name, "a"))
    await stream.send([*events("good", "a", ends=False), started(step=-1)])
    assert await stream.answer() == (6, 0)
    with pytest.raises(aio.AioRpcError) as raised:
        await stream.answer()
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert (raised.value.details() or "").startswith("events.step: ")
    assert [forecast.workflow for forecast in await predict(channel, "1", "2", "good")] == ["1", "2"]


async def test_health_and_reflection_answer(server: PredictorServer, channel: aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    messages: Any = reflection_pb2
    reflection: Any = reflection_pb2_grpc
    request = messages.ServerReflectionRequest(list_services="")
    call = reflection.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10)
    listed = [service.name async for response in call for service in response.list_services_response.service]
    assert SERVICE in listed


async def test_a_subscriber_that_left_is_forgotten(server: PredictorServer, channel: aio.Channel) -> None:
    watch = PredictorServiceStub(channel).WatchForecasts(predictor_pb2.WatchForecastsRequest(), timeout=30)
    await anext(aiter(watch))
    assert server.service.subscribers == 1
    watch.cancel()
    await eventually(lambda: not server.service.subscribers)


async def test_a_reader_that_stops_reading_blocks_nobody(server: PredictorServer, channel: aio.Channel) -> None:
    stub = PredictorServiceStub(channel)
    async with connect(server.address) as other:
        idle = PredictorServiceStub(other).WatchForecasts(predictor_pb2.WatchForecastsRequest(subscriber="idle"), timeout=60)
        busy = aiter(stub.WatchForecasts(predictor_pb2.WatchForecastsRequest(subscriber="busy"), timeout=60))
        await anext(busy)
        heard: set[str] = set()
        for i in range(200):
            await report(channel, events(f"w{i}", "abcdefgh", ends=False))
            while f"w{i}" not in heard:
                heard |= set((await anext(busy)).workflow_ids)
        idle.cancel()


async def test_a_large_snapshot_travels_in_parts(
    server: PredictorServer, channel: aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "MESSAGE_FORECASTS", 4)
    await report(channel, [event for i in range(10) for event in events(f"w{i}", "ab", ends=False)])
    watch = aiter(PredictorServiceStub(channel).WatchForecasts(predictor_pb2.WatchForecastsRequest(), timeout=30))
    parts = [await anext(watch) for _ in range(3)]
    assert [part.snapshot for part in parts] == [True, False, False]
    assert {forecast.workflow for part in parts for forecast in forecasts_from_wire(part)} == {f"w{i}" for i in range(10)}


async def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "predictor" / "state"
    epochs = []
    for run in range(2):
        server = PredictorServer(PredictorConfig(), state_path=path)
        async with connect(await server.start("127.0.0.1", 0)) as channel:
            if run == 0:
                await report(channel, [event for i in range(9) for event in events(f"{i}", "ab")])
            await report(channel, events("w", "a", ends=False))
            (forecast,) = await predict(channel, "w")
        assert forecast.steps[0].agents["b"] > 0.9
        epochs.append(forecast.epoch)
        await server.stop()
    assert epochs[1] > epochs[0]


async def test_the_state_is_saved_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "state"
    server = PredictorServer(PredictorConfig(), state_path=path, save_interval_s=0.01)
    async with connect(await server.start("127.0.0.1", 0)) as channel:
        await report(channel, events("1", "ab"))
        learnt = PREDICTORS.get("mixture")(PredictorConfig())

        def saved() -> bool:
            if path.exists():
                learnt.load(path)
            return learnt.dump() == server.service.predictor.dump()

        await eventually(saved)
    await server.stop()


async def test_a_state_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    server = PredictorServer(PredictorConfig(), state_path=folder / "state", save_interval_s=0.01)
    folder.write_text("in the way")
    async with connect(await server.start("127.0.0.1", 0)) as channel:
        async with asyncio.timeout(10):
            while "cannot write the predictor's state" not in caplog.text:
                assert await report(channel, events("1", "ab")) in ((4, 0), (0, 4))
        assert any(problem.startswith(f"the state {folder / 'state'} cannot be saved: ") for problem in server.problems)
        folder.unlink()
        await eventually(lambda: not server.problems)
    await server.stop()
    PREDICTORS.get("mixture")(PredictorConfig()).load(folder / "state")


async def test_a_state_that_does_not_fit_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"something else")
    server = PredictorServer(PredictorConfig(), state_path=path)
    await server.start("127.0.0.1", 0)
    await server.stop()
    assert "not a predictor's state" in caplog.text
    assert path.with_name("state.refused").read_bytes() == b"something else"
    PREDICTORS.get("mixture")(PredictorConfig()).load(path)


async def test_nothing_that_was_set_aside_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        server = PredictorServer(PredictorConfig(), state_path=path)
        await server.start("127.0.0.1", 0)
        assert "learning has started over: " in server.problems[0]
        await server.stop()
    assert [tmp_path.joinpath(f"state.refused{suffix}").read_bytes() for suffix in ("", "-2", "-3")] == [
        b"one",
        b"two",
        b"three",
    ]


def poisoned(state: dict[str, Any]) -> bytes:
    """A state as `to_bytes` would write it if it took every number."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{"$tree": np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)})
    return file.getvalue()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("opened", float("inf")),
        ("opened", float("nan")),
        ("unnamed", [float("inf")]),
        ("recognition", {"app": {"workflows": 1.0, "steps": [], "features": [[[float("inf"), 1.0]]], "agents": []}}),
        ("workloads", {"app": {"labels": {"names": 10**400}}}),
        ("workloads", {"app": [[]] * 3}),
    ],
)
async def test_a_poisoned_state_is_set_aside_and_stops_nothing(tmp_path: Path, field: str, value: Any) -> None:
    model = PREDICTORS.get("mixture")(PredictorConfig())
    state = {"experts": ["context-tree", "linear", "step-graph"], "horizon": 3, "workloads": {}, "recognition": {}}
    path = tmp_path / "state"
    write_state(path, model.kind, model.version, poisoned(state | {"unnamed": [], "opened": 0, field: value}))
    server = PredictorServer(PredictorConfig(), state_path=path)
    async with connect(await server.start("127.0.0.1", 0)) as channel:
        assert await report(channel, events("1", "ab")) == (4, 0)
    await server.stop()
    assert path.with_name("state.refused").exists()
    model.load(path)


async def test_a_defect_of_a_predictor_in_reading_a_state_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Confused(ExpertPredictor):
        def restore(self, state: bytes) -> None:
            raise OverflowError("cannot convert float infinity to integer")

    path = tmp_path / "state"
    model = Confused(PredictorConfig(), ["markov"])
    model.save(path)
    server = PredictorServer(PredictorConfig(), state_path=path, predictor=model)
    await server.start("127.0.0.1", 0)
    await server.stop()
    assert path.with_name("state.refused").exists()
    assert "OverflowError: cannot convert float infinity" in caplog.text


async def test_a_state_that_must_not_be_kept_is_not_written_over_a_good_one(tmp_path: Path) -> None:
    class Diverged(ExpertPredictor):
        def dump(self) -> bytes:
            return to_bytes({"weights": np.array([1.0, np.nan])})

    path = tmp_path / "state"
    path.with_name("good").write_bytes(b"")
    ExpertPredictor(PredictorConfig(), ["markov"]).save(path)
    good = path.read_bytes()
    server = PredictorServer(
        PredictorConfig(), state_path=path, predictor=Diverged(PredictorConfig(), ["markov"]), save_interval_s=0.01
    )
    await server.start("127.0.0.1", 0)
    await eventually(lambda: bool(server.problems))
    assert server.problems == (f"the state {path} cannot be saved: an array holds a number that is not finite",)
    await server.stop()
    assert path.read_bytes() == good


async def test_a_state_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    server = PredictorServer(PredictorConfig(), state_path=tmp_path)
    with pytest.raises(StartupError, match="cannot use the predictor's state"):
        await server.start("127.0.0.1", 0)
    await server.stop()


class _Faulty(ExpertPredictor):
    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        if workflows:
            raise ZeroDivisionError("a defect in a model")
        return Forecasts.of([])


async def test_a_failed_broadcast_is_told_to_everyone(caplog: pytest.LogCaptureFixture) -> None:
    config = PredictorConfig()
    server = PredictorServer(config, predictor=_Faulty(config, ["markov"]))
    async with connect(await server.start("127.0.0.1", 0)) as channel:
        watch = PredictorServiceStub(channel).WatchForecasts(predictor_pb2.WatchForecastsRequest(), timeout=30)
        await anext(aiter(watch))
        await report(channel, events("w", "a", ends=False))
        with pytest.raises(aio.AioRpcError) as raised:
            await anext(aiter(watch))
        assert raised.value.code() is StatusCode.UNAVAILABLE
        assert "a defect in a model" in (raised.value.details() or "")
        with pytest.raises(aio.AioRpcError) as raised:
            await report(channel, events("x", "a"))
        assert raised.value.code() is StatusCode.UNAVAILABLE
        stream = Stream(channel)
        assert await stream.ask() == (0, 0), "nothing was taken"
        with pytest.raises(aio.AioRpcError) as raised:
            await stream.answer()
        assert raised.value.code() is StatusCode.UNAVAILABLE
    await server.stop()
    assert "broadcast of forecasts failed" in caplog.text


async def test_a_taken_port_stops_the_start(server: PredictorServer) -> None:
    second = PredictorServer(PredictorConfig())
    with pytest.raises(StartupError, match="cannot listen"):
        await second.start("127.0.0.1", int(server.address.rpartition(":")[2]))
    await second.stop()
