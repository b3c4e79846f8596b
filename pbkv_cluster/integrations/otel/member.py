"""The OTLP receiver as a member of a cluster, if `otel.enabled` is set."""

from importlib import import_module
from typing import TYPE_CHECKING

from pbkv_cluster.cluster.membership.announcer import Announcer
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.metrics_endpoint import MetricsEndpoint
from pbkv_cluster.cluster.membership.problems.problem_report import ProblemReport
from pbkv_cluster.cluster.membership.redis_connection import RedisConnection
from pbkv_cluster.core.background import first_failure_of
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.core.metrics.metric import Source
from pbkv_cluster.rpc.services import Services

if TYPE_CHECKING:
    from pbkv_cluster.integrations.otel.receiver import OtelReceiver

MEMBER = "otel"  # its name


class OtelMember:
    """Finds the predictor in the cluster's directory, and follows it when it moves; tells there what it has not understood."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._redis = RedisConnection(context)
        self._receiver: OtelReceiver | None = None
        self._announcer: Announcer | None = None
        self._metrics: MetricsEndpoint | None = None

    def prepare(self) -> None:
        import_module("pbkv_cluster.integrations.otel.receiver")

    async def start(self) -> str:
        """Raises:
        StartupError: a package is missing, or a port cannot be bound.
        """
        directory = self._redis.directory
        receiver = self._receiver = make_receiver(self._context.config.otel, directory, SystemClock())
        address = await receiver.start(self._context.host)
        report = ProblemReport(directory, MEMBER, reasons=receiver.reasons)
        self._announcer = Announcer(report.announce, report.withdraw, directory.renewal_interval_s)
        await self._announcer.start()
        if self._context.config.metrics.enabled:
            name = self._context.name or MEMBER
            self._metrics = MetricsEndpoint(receiver.figures.put, directory, name, Source.OTEL, self._context.node_id)
            await self._metrics.start(self._context.host)
        return address

    async def wait(self) -> None:
        assert self._receiver is not None, "the member was not started"
        assert self._announcer is not None, "the member was not started"
        parts = (self._receiver, self._announcer, self._metrics)
        await first_failure_of(*(part.wait for part in parts if part is not None))

    async def stop(self) -> None:
        for part in (self._metrics, self._announcer):
            if part is not None:
                await part.stop()
        if self._receiver is not None:
            await self._receiver.stop()
        await self._redis.close()


def make_receiver(config: OtelConfig, services: Services, clock: Clock) -> "OtelReceiver":
    """The receiver, whose packages are imported here.

    Raises:
        StartupError: the packages of the extra `otel` are not installed.
    """
    try:
        from pbkv_cluster.integrations.otel.receiver import OtelReceiver
    except ImportError as error:
        raise StartupError(f"OpenTelemetry spans need more packages: {install_command('otel')} ({error})") from error
    return OtelReceiver(config, services, clock)
