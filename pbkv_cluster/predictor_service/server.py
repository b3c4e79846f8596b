"""The predictor as a process: the gRPC service, the broadcast, and the state that survives a restart."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from grpc import aio

from pbkv_cluster.core.background import first_failure
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.forecasts.forecast import StepForecast
from pbkv_cluster.predictor_service.access.learner import AccessLearner
from pbkv_cluster.predictor_service.broadcast.subscription import Batch
from pbkv_cluster.predictor_service.predictor.base import Predictor
from pbkv_cluster.predictor_service.predictor.explanation import Explanation
from pbkv_cluster.predictor_service.service import PredictorService
from pbkv_cluster.predictor_service.state.file import StateRefused, access_path, write_state
from pbkv_cluster.predictor_service.training.jobs import ProcessTrainer
from pbkv_cluster.predictor_service.training.warm_up import rehearse
from pbkv_cluster.rpc.access_logs import logs_from_wire
from pbkv_cluster.rpc.convert import event_from_wire, forecasts_to_wire
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

log = logging.getLogger(__name__)

# A message of this many forecasts stays well under the limit of a channel, whatever the names' lengths.
MESSAGE_FORECASTS = 4096


class PredictorServicer(predictor_pb2_grpc.PredictorServiceServicer):
    """`PredictorService` of the wire contract, around the plain object."""

    def __init__(self, service: PredictorService, learner: AccessLearner) -> None:
        self._service = service
        self._learner = learner

    async def ReportEvents(  # noqa: N802
        self, request: predictor_pb2.ReportEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ReportEventsResponse:
        reported = self._service.report([event_from_wire(event) for event in request.events])
        return predictor_pb2.ReportEventsResponse(accepted=reported.accepted, ignored=reported.ignored)

    async def StreamEvents(  # noqa: N802
        self, requests: AsyncIterator[predictor_pb2.ReportEventsRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[predictor_pb2.ReportEventsResponse]:
        taken = predictor_pb2.ReportEventsResponse()
        async for request in requests:
            try:
                reported = self._service.report([event_from_wire(event) for event in request.events])
            except Exception:
                yield taken  # tells the sender which request it was
                raise
            taken.accepted += reported.accepted
            taken.ignored += reported.ignored
            if not request.events:
                yield taken

    async def WatchForecasts(  # noqa: N802
        self, request: predictor_pb2.WatchForecastsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[predictor_pb2.ForecastBatch]:
        subscription = self._service.subscribe(request.subscriber or context.peer(), request.placed_only)
        if request.access_model:
            self._learner.feed(subscription)
        # Not in a `finally`: the generator of a call that is cancelled while it writes ends only when it is collected.
        context.add_done_callback(lambda _: subscription.close())  # type: ignore[arg-type]  # the stubs want a class here
        async for batch in subscription:
            for message in _messages(batch):
                yield message

    async def Predict(  # noqa: N802
        self, request: predictor_pb2.PredictRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ForecastBatch:
        return forecasts_to_wire(self._service.predict(request.workflow_ids))

    async def Explain(  # noqa: N802
        self, request: predictor_pb2.ExplainRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ExplainResponse:
        return _explained(self._service.explain(request.workflow_id))

    async def ReportAccess(  # noqa: N802
        self, request: predictor_pb2.ReportAccessRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ReportAccessResponse:
        taken = self._learner.report(logs_from_wire(request.logs))
        return predictor_pb2.ReportAccessResponse(accepted=taken.accepted, dropped=taken.dropped)


class PredictorServer:
    """Runs a `PredictorService` behind gRPC."""

    def __init__(
        self,
        config: PredictorConfig,
        clock: Clock | None = None,
        state_path: Path | None = None,
        *,
        predictor: Predictor | None = None,
        lease_s: float = 3600.0,
        save_interval_s: float = 30.0,
    ) -> None:
        """Args:
        config: the model and the limits of the broadcast.
        clock: by default the machine's.
        state_path: file of what has been learnt: read at the start, written every `save_interval_s` and at the stop. The access
            model lies beside it, see `access_path`.
        predictor: the model, instead of the one that `config` names.
        lease_s: silence after which a workflow leaves memory.
        save_interval_s: seconds between two writes of the state.

        Raises:
            InvalidArgument: there is no model of the configured name.
        """
        self.service = PredictorService(config, clock or SystemClock(), predictor, lease_s=lease_s)
        self._to_rehearse = config if predictor is None else None
        self.learner = AccessLearner(config.access_interval_s)
        self._trainer = self.service.predictor.trainer = ProcessTrainer()
        self._state_path = state_path
        self._save_interval_s = save_interval_s
        self._saved = b""
        self._rpc = RpcServer()
        self._stopping = asyncio.Event()
        self._broadcast: asyncio.Task[None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self._training: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it serves, host:port; empty before the start."""
        return self._rpc.address

    async def start(self, host: str, port: int) -> str:
        """Restores the state and serves. Port 0 takes a free one. Returns the address, host:port.

        A state that does not fit is set aside, under a name that ends in `.refused`, and learning starts over.

        Raises:
            StartupError: the address cannot be bound, or the state file not be read.
        """
        if self._to_rehearse is not None:
            await asyncio.to_thread(rehearse, self._to_rehearse)
        if self._state_path is not None:
            await asyncio.to_thread(_restore, self._state_path, self.service.predictor.load)
            await asyncio.to_thread(_restore, access_path(self._state_path), self.learner.load)
        descriptor = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]
        register = predictor_pb2_grpc.add_PredictorServiceServicer_to_server
        self._rpc.add(descriptor, register, PredictorServicer(self.service, self.learner))
        address = await self._rpc.start(host, port)
        self._broadcast = asyncio.create_task(self.service.run(), name="broadcast of forecasts")
        self._learning = asyncio.create_task(self.learner.run(), name="learning of access")
        self._training = asyncio.create_task(self._trainer.run(), name="training")
        for task in (self._broadcast, self._learning, self._training):
            task.add_done_callback(self._on_done)
        if self._state_path:
            self._saving = asyncio.create_task(self._save_periodically(self._state_path), name="saving of the state")
        log.info("predictor %s serves on %s", self.service.predictor.kind, address)
        return address

    async def wait(self) -> None:
        """Returns never while all is well.

        Raises:
            Exception: what ended the broadcast, the learning or the training.
        """
        assert self._broadcast is not None, "the server was not started"
        assert self._learning is not None
        assert self._training is not None
        await first_failure(*(asyncio.shield(task) for task in (self._broadcast, self._learning, self._training)))

    async def stop(self) -> None:
        """Ends the streams, saves the state and stops serving."""
        self.service.close("the predictor stops")
        self._stopping.set()
        for task in (self._broadcast, self._learning, self._training):
            if task:
                task.cancel()
                await asyncio.wait([task])  # a failure was reported when it happened
        if self._saving:
            await self._saving
        await self.learner.close()
        await self._rpc.stop()

    async def _save_periodically(self, path: Path) -> None:
        # Told to stop rather than cancelled: a write in its thread cannot be, and would race with the last one.
        last = False
        while not last:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._save_interval_s):
                    await self._stopping.wait()
            last = self._stopping.is_set()
            for save, file in ((self._save, path), (self.learner.save, access_path(path))):
                try:
                    await save(file)
                except OSError as error:
                    log.error("cannot write the predictor's state %s: %s", file, error.strerror)

    async def _save(self, path: Path) -> None:
        predictor = self.service.predictor
        state = predictor.dump()
        if state != self._saved:
            await asyncio.to_thread(write_state, path, predictor.kind, predictor.version, state)
            self._saved = state

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("%s failed", task.get_name(), exc_info=error)
            self.service.close(f"the predictor has failed: {type(error).__name__}: {error}")


def collect_rarely() -> None:
    """For a process that is a predictor's alone, once it has started: full garbage collections become rare.

    Open workflows and what has been learnt live long and hold no cycles. To look through all of them takes a tenth of a second
    for some hundred workflows, and forecasts wait for it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)


def _restore(path: Path, load: Callable[[Path], None]) -> None:
    if not path.exists():
        return
    aside = path.with_name(f"{path.name}.refused")
    try:
        try:
            load(path)
        except StateRefused as error:
            path.replace(aside)
            log.error("learning starts over: %s (set aside as %s)", error, aside.name)
    except OSError as error:
        raise StartupError(f"cannot use the predictor's state {path}: {error.strerror}") from error


def _explained(explanation: Explanation) -> predictor_pb2.ExplainResponse:
    return predictor_pb2.ExplainResponse(
        workload=explanation.workload,
        steps_begun=explanation.begun,
        output_known=explanation.output_known,
        predictability=explanation.predictability,
        steps=map(_explained_step, explanation.steps),
        experts=[
            predictor_pb2.ExplainResponse.Expert(
                name=opinion.expert, weights=opinion.weights, steps=map(_explained_step, opinion.steps)
            )
            for opinion in explanation.opinions
        ],
    )


def _explained_step(step: StepForecast) -> predictor_pb2.ExplainResponse.Step:
    likeliest = sorted(step.agents.items(), key=lambda entry: entry[1], reverse=True)
    agents = [predictor_pb2.ExplainResponse.Agent(agent_id=agent, probability=chance) for agent, chance in likeliest]
    return predictor_pb2.ExplainResponse.Step(agents=agents, survival=step.survival)


def _messages(batch: Batch) -> Iterator[predictor_pb2.ForecastBatch]:
    # Only the first part of a snapshot says so: the receiver forgets the rest, and learns it again from the parts behind.
    for start in range(0, max(1, len(batch.forecasts)), MESSAGE_FORECASTS):
        message = forecasts_to_wire(batch.forecasts[start : start + MESSAGE_FORECASTS], snapshot=batch.snapshot and start == 0)
        if start + MESSAGE_FORECASTS >= len(batch.forecasts):
            message.access_model = batch.access
        yield message
