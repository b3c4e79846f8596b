"""The sidecar: its parts put together."""

from collections import Counter

from pbkv_cluster.core.background import Background, first_failure_of
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.http.sessions.sessions import Sessions
from pbkv_cluster.gateway.http.wire.body import BodyReader
from pbkv_cluster.gateway.http.wire.port import HttpPort
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.integrations.kv_hints import HintMaker
from pbkv_cluster.integrations.sidecar.app import make_app
from pbkv_cluster.integrations.sidecar.engines.fleet import Fleet
from pbkv_cluster.integrations.sidecar.engines.placement import Placement
from pbkv_cluster.integrations.sidecar.engines.prompts import PromptReader
from pbkv_cluster.integrations.sidecar.figures import SidecarFigures
from pbkv_cluster.integrations.sidecar.in_flight import InFlight
from pbkv_cluster.integrations.sidecar.proxy import Proxy
from pbkv_cluster.integrations.sidecar.status import SidecarStatus
from pbkv_cluster.integrations.sidecar.workflow.forecasts import ForecastBook
from pbkv_cluster.integrations.sidecar.workflow.hints import HintWriter
from pbkv_cluster.integrations.sidecar.workflow.local_workflows import LocalWorkflows
from pbkv_cluster.integrations.sidecar.workflow.steps import Steps
from pbkv_cluster.rpc.services import Services


class SidecarServer:
    """Serves until it is stopped."""

    def __init__(self, config: Config, services: Services, clock: Clock) -> None:
        """Args:
        config: `sidecar` with at least one engine, and the bounds of `gateway`.
        services: finds the predictor.
        clock: measures time.

        Raises:
            StartupError: the tokenizer cannot be loaded.
        """
        settings, bounds = config.sidecar, config.gateway
        decisions: Decisions = Counter()
        self.meter = GatewayMeter(config.metrics.max_workloads)
        self.feed = EventFeed(services, decisions)
        self.fleet = Fleet(settings, clock)
        events = EventReporter(self.feed.put, clock)
        workflows = OpenWorkflows(clock, bounds.max_workflows, bounds.max_graph_bytes)
        self._contexts = Contexts()
        self.forecasts = ForecastBook(services, workflows)
        self._clock = clock
        self.workflows = LocalWorkflows(bounds, workflows, events, decisions, clock, self._on_end)
        prompts = PromptReader(_codec(settings.tokenizer))
        placement = Placement(self.fleet, self._contexts, decisions, settings.max_running)
        infinite = InfiniteCache(bounds.available_blocks)
        self.proxy = Proxy(
            bodies=BodyReader(bounds.http_max_body_bytes, bounds.max_step_bytes),
            sessions=Sessions(self.workflows, bounds.http_recognition_bytes),
            workflows=workflows,
            prompts=prompts,
            placement=placement,
            steps=Steps(placement, prompts, self._contexts, infinite, events, self.meter, decisions, clock),
            forecasts=self.forecasts,
            hints=HintWriter(HintMaker(config.cache.gamma, config.cache.forecast_half_life_s)),
            decisions=decisions,
            in_flight=InFlight(bounds.max_steps, bounds.max_step_bytes, decisions),
        )
        figures = SidecarFigures(self.proxy, self.fleet, self.feed)
        status = SidecarStatus(self.proxy, self.fleet, self.feed)
        self._port = HttpPort(make_app(self.proxy, figures, status), bounds, date_header=False)
        self._background = Background()

    @property
    def address(self) -> str:
        """Where it serves, host:port; empty before the start."""
        return self._port.address

    async def start(self, host: str, port: int) -> str:
        """Asks the engines whether they are there, and serves. Port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        await self.fleet.start()
        self._background.start(self.feed.run(), "events to the predictor")
        self._background.start(self.forecasts.run(), "forecasts")
        self._background.start(self.workflows.run_leases(), "leases of workflows")
        return await self._port.start(host, port)

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        await first_failure_of(self._background.failure, self.fleet.wait)

    async def stop(self) -> None:
        """Cuts off what runs, and tells the predictor what is left to tell."""
        await self._port.stop()
        await self.feed.finish()
        await self._background.stop()
        await self.fleet.stop()

    def _on_end(self, workflow: OpenWorkflow) -> None:
        silent_s = self._clock.now() - workflow.renewed_at
        self.meter.workflow_ended(max(self._clock.wall() - workflow.started_at - silent_s, 0.0))
        self._contexts.end(workflow.id)
        self.forecasts.drop(workflow.id)


def _codec(tokenizer: str) -> TextCodec | None:
    if not tokenizer:
        return None
    from pbkv_cluster.core.text.tokenizers_only import use_tokenizers_only

    use_tokenizers_only()
    return TextCodec.load(tokenizer, field="sidecar.tokenizer")
