"""Workers on real gRPC, with a scripted predictor and a real host store."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpc import aio

from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.load_speeds import LoadSpeeds
from pbkv_cluster.core.locations.residency import ON_GPU, Residency, is_readable
from pbkv_cluster.core.tokens import pack, unpack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.facts import WorkerFacts
from pbkv_cluster.gpu_worker.server import WorkerServer
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import (
    predictor_pb2,
    predictor_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
    types_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.server import HostStore
from tests.polling import eventually

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.store_pb2_grpc import StoreServiceAsyncStub
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

PATIENCE_S = 30.0
_NAMES = itertools.count()


def config(model: Path, **sections: dict[str, Any]) -> Config:
    """The configuration of a small worker, in float64 so that rounding cannot change a choice."""
    engine = {"device": "cpu", "gpu_blocks": 64, "host_blocks": 0, **sections.pop("engine", {})}
    return Config.model_validate({"model": {"path": str(model), "dtype": "float64"}, "engine": engine, **sections})


def step(prompt: Sequence[int], **fields: Any) -> worker_pb2.RunStepRequest:
    """A request of eight tokens with a unique id. `sampling` is a dictionary of the message's fields."""
    sampling = {"max_tokens": 8, "ignore_eos": True, **fields.pop("sampling", {})}
    if "forced_output" in sampling:
        sampling["forced_output"] = packed(sampling["forced_output"])
    request = worker_pb2.RunStepRequest(
        **{
            "request_id": f"r{next(_NAMES)}",
            "workflow_id": "w",
            "agent_id": "a",
            "prompt": packed(prompt),
            "sent": packed(fields.pop("sent", [])),
            **fields,
        }
    )
    request.sampling.CopyFrom(types_pb2.Sampling(**sampling))
    return request


def packed(ids: Sequence[int]) -> types_pb2.PackedTokens:
    return types_pb2.PackedTokens(data=pack(ids))


@dataclass
class Answer:
    """Everything that a step has streamed."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    events: int = 0
    reason: types_pb2.FinishReason = types_pb2.FINISH_REASON_UNSPECIFIED
    usage: Usage = field(default_factory=Usage)
    hidden: bytes = b""
    speeds: LoadSpeeds | None = None

    @property
    def delivered(self) -> int:
        """Prompt tokens that some tier delivered."""
        return sum(self.usage.delivered.values())


@dataclass
class Rig:
    """A worker and a channel to it."""

    worker: WorkerServer
    facts: WorkerFacts
    channel: aio.Channel
    stub: "WorkerServiceAsyncStub"
    store: "StoreServiceAsyncStub"

    def call(self, request: worker_pb2.RunStepRequest) -> Any:
        return self.stub.RunStep(request, timeout=PATIENCE_S)

    async def run(self, request: worker_pb2.RunStepRequest) -> Answer:
        answer = Answer()
        async for event in self.call(request):
            answer.events += 1
            if event.WhichOneof("event") == "tokens":
                answer.tokens += unpack(event.tokens.token_ids.data)
                answer.text += event.tokens.text
            else:
                answer.reason = event.finished.reason
                answer.usage = convert.usage_from_wire(event.finished.usage)
                answer.hidden = event.finished.hidden
                if event.finished.HasField("speeds"):
                    answer.speeds = convert.load_speeds_from_wire(event.finished.speeds)
        assert answer.reason, "the stream ended without Finished"
        return answer

    async def status(self) -> worker_pb2.GetWorkerStatusResponse:
        return await self.stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=PATIENCE_S)

    async def stat(self, tier: Tier) -> store_pb2.TierStat:
        stat = (await self.store.Stat(store_pb2.StatRequest(), timeout=PATIENCE_S)).store
        return next(each for each in stat.tiers if each.tier == convert.tier_to_wire(tier))

    async def decisions(self) -> dict[str, int]:
        return dict((await self.status()).store.decisions)

    async def retire(self, workflow: str) -> None:
        await self.stub.RetireWorkflow(worker_pb2.RetireWorkflowRequest(workflow_id=workflow), timeout=PATIENCE_S)

    async def prefetch(self, prompt: Sequence[int], tenant: str = "") -> tuple[int, int]:
        """Returns the numbers of tokens loaded, and of tokens then on the GPU."""
        request = store_pb2.PrefetchRequest(prompt=types_pb2.Prompt(token_ids=packed(prompt)), tenant=tenant)
        done = await self.store.Prefetch(request, timeout=PATIENCE_S)
        return done.loaded_tokens, done.resident_tokens

    async def held(self) -> list[tuple[bytes, int]]:
        """Key and packed residency of every block, once all are where others can read them."""

        def look(engine: Engine) -> Mapping[bytes, Residency]:
            engine.cache.poll()
            return engine.cache.tiers.residency()

        async def have_arrived() -> bool:
            found = await self.worker.thread.call(look)
            blocks[:] = [(key, residency.pack()) for key, residency in found.items()]
            return all(is_readable(packed) or packed == ON_GPU for _, packed in blocks)

        blocks: list[tuple[bytes, int]] = []
        await eventually(have_arrived)
        return blocks

    async def clear(self) -> int:
        return (await self.store.Clear(store_pb2.ClearRequest(), timeout=PATIENCE_S)).dropped_blocks

    async def copies_ended(self) -> bool:
        """Whether no transfer is under way."""

        def look(engine: Engine) -> bool:
            engine.cache.poll()
            return not len(engine.cache.tiers.in_flight)

        return await self.worker.thread.call(look)

    async def running(self, steps: int) -> bool:
        """Whether so many steps run."""
        return (await self.status()).running == steps

    async def idle(self) -> bool:
        """Whether no step runs or waits, and no block is locked."""
        status = await self.status()
        return not (status.running or status.waiting or any(tier.locked_blocks for tier in status.store.tiers))


@asynccontextmanager
async def serving(config: Config, worker_id: str = "w", clock: Clock | None = None, **peers: Any) -> AsyncIterator[Rig]:
    """A worker that serves on the loopback; `peers` are further arguments of `WorkerServer`."""
    worker = WorkerServer(config, worker_id, clock or SystemClock(), **peers)
    try:
        facts = await worker.start("127.0.0.1")
        async with connect(facts.address) as channel:
            stubs = worker_pb2_grpc.WorkerServiceStub(channel), store_pb2_grpc.StoreServiceStub(channel)
            yield Rig(worker, facts, channel, *stubs)
    finally:
        await worker.stop()


class ScriptedPredictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Sends its subscribers what a test wants."""

    def __init__(self) -> None:
        self.subscribers: list[tuple[str, asyncio.Queue[predictor_pb2.ForecastBatch | None]]] = []
        self.address: str | None = None
        self._server: RpcServer | None = None

    async def service_address(self, name: str) -> str | None:
        """Its own address, so that it can be given to a worker as the directory."""
        return self.address

    async def start(self) -> None:
        self._server = RpcServer()
        service = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]
        self._server.add(service, predictor_pb2_grpc.add_PredictorServiceServicer_to_server, self)
        self.address = await self._server.start("127.0.0.1", 0)

    async def stop(self, grace_s: float = 0.0) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
        self.subscribers.clear()

    def fail(self) -> None:
        """Ends every subscription with an error."""
        for _, queue in self.subscribers:
            queue.put_nowait(None)

    def send(self, forecasts: Iterable[Forecast]) -> None:
        for _, queue in self.subscribers:
            queue.put_nowait(convert.forecasts_to_wire(Forecasts.of(forecasts)))

    async def WatchForecasts(  # noqa: N802
        self, request: predictor_pb2.WatchForecastsRequest, context: Any
    ) -> AsyncIterator[predictor_pb2.ForecastBatch]:
        queue: asyncio.Queue[predictor_pb2.ForecastBatch | None] = asyncio.Queue()
        self.subscribers.append((request.subscriber, queue))
        while (batch := await queue.get()) is not None:
            yield batch
        raise RuntimeError("the test ends the subscription")

    async def ReportEvents(  # noqa: N802
        self, request: predictor_pb2.ReportEventsRequest, context: Any
    ) -> predictor_pb2.ReportEventsResponse:
        raise NotImplementedError

    async def StreamEvents(  # noqa: N802
        self, requests: AsyncIterator[predictor_pb2.ReportEventsRequest], context: Any
    ) -> AsyncIterator[predictor_pb2.ReportEventsResponse]:
        raise NotImplementedError
        yield

    async def ReportAccess(  # noqa: N802
        self, request: predictor_pb2.ReportAccessRequest, context: Any
    ) -> predictor_pb2.ReportAccessResponse:
        raise NotImplementedError

    async def Explain(self, request: predictor_pb2.ExplainRequest, context: Any) -> predictor_pb2.ExplainResponse:  # noqa: N802
        raise NotImplementedError

    async def Predict(self, request: predictor_pb2.PredictRequest, context: Any) -> predictor_pb2.ForecastBatch:  # noqa: N802
        raise NotImplementedError


@asynccontextmanager
async def host_store(
    capacity: int, lease_s: float = 60.0, clock: Clock | None = None, directory_of_workers: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Arena, str]]:
    """Runs a host store with an arena of its own; yields the arena and the address."""

    async def workers() -> Mapping[str, str]:
        return directory_of_workers or {}

    arena = Arena(uuid.uuid4().hex, capacity, lease_s, clock or SystemClock())
    store = HostStore(arena, workers)
    try:
        yield arena, await store.start("127.0.0.1")
    finally:
        await store.stop()


async def stored(arena: Arena, blocks: int) -> None:
    """Waits until a worker's region has some blocks."""
    view = ArenaView(arena.path)

    def has() -> bool:
        regions = list(view.regions().values())
        return bool(regions) and len(list(regions[0].headers())) >= blocks

    await eventually(has)
    view.close()


def flip(arena: Arena, layout: RegionLayout, owner: str = "") -> None:
    """Damages every payload of a worker's region, by default of the only one."""
    regions = arena.regions()
    (region,) = [regions[owner]] if owner else regions.values()
    with arena.path.open("r+b") as file:
        for slot in range(layout.slots):
            place = region.offset + layout.payloads + slot * layout.payload_bytes + 100
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
