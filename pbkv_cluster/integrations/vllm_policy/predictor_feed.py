"""A running predictor in place of a learner of one's own: it gets the access logs, and sends what it learns, and forecasts."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from grpc import aio

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.config import SecurityConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.gpu_worker.predictor_link.access_logs import AccessReporter
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate
from pbkv_cluster.rpc.convert import forecasts_from_wire
from pbkv_cluster.rpc.security import Access, set_up_access
from pbkv_cluster.rpc.service_link import LinkState, ServiceLink, Verdict
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

log = logging.getLogger(__name__)

SUBSCRIBER = "vllm-policy"
_MAX_FORECASTS = 4096  # that wait to be taken; beyond, the oldest are dropped
_MAX_UPDATES = 1024  # of at most 256 KiB each before compression; beyond, all are dropped and the whole model is sent again


def connect_as_configured(security: SecurityConfig, env: Mapping[str, str]) -> None:
    """Has this process show the predictor what it asks for: an operator's key, and the certificate of a member of its cluster.

    Args:
        security: of the cluster.
        env: holds the key, in PBKV_API_KEY; in PBKV_TLS_CA what to trust where there is no certificate of its own.

    Raises:
        InvalidArgument: the file of PBKV_TLS_CA cannot be used.
    """
    tls = Tls.of(security) or Tls.of_client(env.get("PBKV_TLS_CA"), "PBKV_TLS_CA")
    if tls is not None or env.get("PBKV_API_KEY"):
        set_up_access(Access(env.get("PBKV_API_KEY", ""), tls))


class PredictorFeed:
    """A connection with a thread and an event loop of its own. While the predictor is away, what is known stays."""

    def __init__(self, address: str, prior: AccessModel) -> None:
        """Args:
        address: host:port of the predictor.
        prior: what every model begins with until the predictor has sent its own.
        """
        self._services = FixedServices({PREDICTOR: address})
        self._forecasts: deque[Forecast] = deque(maxlen=_MAX_FORECASTS)
        self._updates: deque[AccessUpdate] = deque([prior.export(workload=None, fresh=True)])
        self._loop = asyncio.new_event_loop()
        self._link = ServiceLink(self._services, PREDICTOR, self._watch, purpose="forecasts")
        self._reporter = AccessReporter(self._services, self)
        self._task = self._loop.create_task(self._serve())
        self._thread = threading.Thread(target=self._run, name="pbkv-predictor", daemon=True)
        self._thread.start()

    @property
    def state(self) -> LinkState:
        """State of the subscription."""
        return self._link.state

    def report(self, ended: AccessLog) -> None:
        self._reporter.workflow_ended(ended)

    def updates(self) -> Iterator[AccessUpdate]:
        while self._updates:
            yield self._updates.popleft()

    def forecasts(self) -> Iterator[Forecast]:
        while self._forecasts:
            yield self._forecasts.popleft()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def deliver(self, call: Callable[..., None], *args: object) -> None:
        """Runs `call` on the event loop; does not wait for it."""
        self._loop.call_soon_threadsafe(call, *args)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            log.debug("the connection to the predictor was closed")
        except Exception:
            log.exception("forecasts end here: the connection to the predictor has failed")
            raise
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        background = Background()
        background.start(self._link.run(), "forecasts")
        background.start(self._reporter.run(), "access logs")
        try:
            await background.failure()
        finally:
            await background.stop()

    async def _watch(self, channel: aio.Channel) -> Verdict:
        request = predictor_pb2.WatchForecastsRequest(subscriber=SUBSCRIBER, access_model=True)
        async for batch in predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(request):
            self._link.connected()
            self._forecasts.extend(forecasts_from_wire(batch))
            if not batch.access_model:
                continue
            if len(self._updates) >= _MAX_UPDATES:
                self._updates.clear()
                return Verdict.AGAIN
            try:
                self._updates.append(AccessUpdate.from_bytes(batch.access_model))
            except ValueError as error:
                log.warning("a model update is skipped: %s", error)
        return Verdict.LOST
