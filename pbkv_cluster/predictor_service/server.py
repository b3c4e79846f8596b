"""Puts the predictor together: service and broadcast, access learner, training, saved state, and the gRPC server."""

import asyncio
import logging
from pathlib import Path

from pbkv_cluster.core.background import first_failure
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.access.learner import AccessLearner
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.predictor_service.figures import PredictorFigures
from pbkv_cluster.predictor_service.predictor import Predictor
from pbkv_cluster.predictor_service.predictor.warm_up import warm_up
from pbkv_cluster.predictor_service.service import PredictorService
from pbkv_cluster.predictor_service.servicer import PredictorServicer
from pbkv_cluster.predictor_service.state.file import access_path, write_state
from pbkv_cluster.predictor_service.state.saver import StateSaver, restore
from pbkv_cluster.predictor_service.training.jobs import ProcessTrainer
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

log = logging.getLogger(__name__)


class PredictorServer:
    """A predictor that serves gRPC."""

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
            model is saved beside it, see `access_path`.
        predictor: the model, instead of the one that `config` names.
        lease_s: silence after which a workflow leaves memory.
        save_interval_s: seconds between two writes of the state.

        Raises:
            InvalidArgument: there is no model of the configured name, or the prior does not fit.
        """
        self.service = PredictorService(config, clock or SystemClock(), predictor, lease_s=lease_s)
        self._warm_up_config = config if predictor is None else None
        self.learner = AccessLearner(config.access_interval_s, load_prior(config.prior))
        self.figures = PredictorFigures(self.service, self.learner, lambda: self.problems)
        self._trainer = self.service.predictor.trainer = ProcessTrainer()
        self._state_path = state_path
        self._saved = b""
        self._saver: StateSaver | None = None
        if state_path is not None:
            files = {state_path: self._save, access_path(state_path): self.learner.save}
            self._saver = StateSaver(files, save_interval_s)
        self._refused: list[str] = []  # why states were set aside at the start
        self._rpc = RpcServer()
        self._parts: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Where it serves, host:port; empty before the start."""
        return self._rpc.address

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not work as it should while the predictor serves; empty: all does."""
        return (*self._refused, *(self._saver.problems if self._saver is not None else ()))

    async def start(self, host: str, port: int) -> str:
        """Restores the state and serves. Port 0 takes a free one. Returns the address, host:port.

        A state that does not fit is set aside (`.refused`), and learning starts over.

        Raises:
            StartupError: the address cannot be bound, or the state file not be read.
        """
        if self._warm_up_config is not None:
            await asyncio.to_thread(warm_up, self._warm_up_config)
        if self._state_path is not None:
            for path, load in (
                (self._state_path, self.service.predictor.load),
                (access_path(self._state_path), self.learner.load),
            ):
                if refused := await asyncio.to_thread(restore, path, load):
                    self._refused.append(refused)
        descriptor = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]
        register = predictor_pb2_grpc.add_PredictorServiceServicer_to_server
        self._rpc.add(descriptor, register, PredictorServicer(self.service, self.learner))
        address = await self._rpc.start(host, port)
        self._parts = [
            asyncio.create_task(self.service.run(), name="broadcast of forecasts"),
            asyncio.create_task(self.learner.run(), name="learning of access"),
            asyncio.create_task(self._trainer.run(), name="training"),
        ]
        for task in self._parts:
            task.add_done_callback(self._on_done)
        if self._saver is not None:
            self._saver.start()
        log.info("predictor %s serves on %s", self.service.predictor.kind, address)
        return address

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error.

        Raises:
            Exception: the error of the broadcast, the access learner or the trainer.
        """
        assert self._parts, "the server was not started"
        await first_failure(*map(asyncio.shield, self._parts))

    async def stop(self) -> None:
        """Ends the streams, saves the state and stops serving."""
        self.service.close("the predictor stops")
        for task in self._parts:
            task.cancel()
            await asyncio.wait([task])  # a failure was logged when it happened
        if self._saver is not None:
            await self._saver.stop()
        await self.learner.close()
        await self._rpc.stop()

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
