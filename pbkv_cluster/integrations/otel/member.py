"""The OTLP receiver as a member of a cluster, started where `otel.enabled` says so."""

from typing import TYPE_CHECKING

from pbkv_cluster.cluster.member_context import Index, MemberContext
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.rpc.services import Services

if TYPE_CHECKING:
    from pbkv_cluster.integrations.otel.receiver import OtelReceiver


class OtelMember:
    """Finds the predictor in the cluster's directory, wherever it moves."""

    def __init__(self, site: MemberContext) -> None:
        self._site = site
        self._index = Index(site)
        self._receiver: OtelReceiver | None = None

    async def start(self) -> str:
        """Raises:
        StartupError: a package is missing, or a port cannot be bound.
        """
        self._receiver = make_receiver(self._site.config.otel, self._index.directory, SystemClock())
        return await self._receiver.start(self._site.host)

    async def wait(self) -> None:
        assert self._receiver is not None, "the member was not started"
        await self._receiver.wait()

    async def stop(self) -> None:
        if self._receiver is not None:
            await self._receiver.stop()
        await self._index.close()


def make_receiver(config: OtelConfig, predictor: Services, clock: Clock) -> "OtelReceiver":
    """Raises:
    StartupError: the packages of the extra `otel` are not installed.
    """
    try:
        from pbkv_cluster.integrations.otel.receiver import OtelReceiver
    except ImportError as error:
        raise StartupError(f"OpenTelemetry spans need more packages: pip install 'pbkv-cluster[otel]' ({error})") from error
    return OtelReceiver(config, predictor, clock)
