"""The OTLP receiver as a member of a cluster, if `otel.enabled` is set."""

from importlib import import_module
from typing import TYPE_CHECKING

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.redis_connection import RedisConnection
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.rpc.services import Services

if TYPE_CHECKING:
    from pbkv_cluster.integrations.otel.receiver import OtelReceiver


class OtelMember:
    """Finds the predictor in the cluster's directory, and follows it when it moves."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._redis = RedisConnection(context)
        self._receiver: OtelReceiver | None = None

    def prepare(self) -> None:
        import_module("pbkv_cluster.integrations.otel.receiver")

    async def start(self) -> str:
        """Raises:
        StartupError: a package is missing, or a port cannot be bound.
        """
        self._receiver = make_receiver(self._context.config.otel, self._redis.directory, SystemClock())
        return await self._receiver.start(self._context.host)

    async def wait(self) -> None:
        assert self._receiver is not None, "the member was not started"
        await self._receiver.wait()

    async def stop(self) -> None:
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
        raise StartupError(f"OpenTelemetry spans need more packages: pip install 'pbkv-cluster[otel]' ({error})") from error
    return OtelReceiver(config, services, clock)
