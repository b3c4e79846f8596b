"""A connection to a service that is found, opened, used, and opened again whenever it is lost.

Every process that talks to a service for as long as it lives does so through a `ServiceLink`. Its user writes only the
*exchange*: what to say on one open channel.

    link = ServiceLink(services, PREDICTOR, watch, purpose="forecasts")

    async def watch(channel: aio.Channel) -> Verdict:
        async for batch in PredictorServiceStub(channel).WatchForecasts(request):
            link.connected()
            ...
        return Verdict.LOST
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple

from grpc import aio

from pbkv_cluster.core.background import cancel, wait_for
from pbkv_cluster.core.errors import PbkvError, Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.services import Services

log = logging.getLogger(__name__)


class Verdict(Enum):
    """How an exchange ended, and what the link does next.

    | verdict | the exchange | next |
    |---|---|---|
    | LOST | was ended by the service, or by an error | find the service again, after a pause |
    | AGAIN | needs a new channel; the service is well | find the service again, at once |
    | DONE | has nothing left to do | `run` returns |

    An exchange that raises `PbkvError` or `AioRpcError` counts as LOST. Any other exception is a defect and ends the link.
    """

    LOST = "lost"
    AGAIN = "again"
    DONE = "done"


class Phase(StrEnum):
    """What a link is doing."""

    STOPPED = "stopped"  # `run` has not begun, or has ended
    SEARCHING = "searching"  # looks for the service, or pauses before it does
    CONNECTING = "connecting"  # has an address; the service has not answered yet
    CONNECTED = "connected"  # the service has answered


class LinkState(NamedTuple):
    """A link at one moment, as a status page shows it."""

    phase: Phase
    address: str = ""  # host:port; empty while it is not known
    problem: str = ""  # why the latest attempt ended; empty while connected


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: they double up to a bound, and vary at random so that clients do not return in step."""

    first_s: float = 0.1
    most_s: float = 1.0

    def pause_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row, counted from 1."""
        longest_s: float = min(self.first_s * 2.0 ** min(failures - 1, 32), self.most_s)
        return longest_s * random.uniform(0.5, 1.0)


class ServiceLink:
    """Keeps an exchange with one service going, wherever the service is. Runs as one task."""

    def __init__(
        self,
        services: Services,
        name: str,
        exchange: Callable[[aio.Channel], Awaitable[Verdict]],
        *,
        purpose: str,
        backoff: Backoff | None = None,
        lookup_interval_s: float = 5.0,
    ) -> None:
        """Args:
        services: finds the service.
        name: of the service.
        exchange: talks to the service on one channel, and calls `connected` as soon as it has answered. It may be cancelled at
            any time: because the link stops, or because the service has moved.
        purpose: what the link carries, for the log.
        backoff: pauses between attempts.
        lookup_interval_s: seconds between two looks at the service's address while an exchange runs.
        """
        self._services = services
        self._name = name
        self._exchange = exchange
        self._purpose = purpose
        self._backoff = backoff or Backoff()
        self._lookup_interval_s = lookup_interval_s
        self._failures = 0  # attempts in a row that were lost, or lost soon after they had connected
        self._connected_at = 0.0  # on the event loop's clock
        self._finishing = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopped.set()
        self._state = LinkState(Phase.STOPPED)

    @property
    def state(self) -> LinkState:
        """What the link is doing now."""
        return self._state

    @property
    def is_connected(self) -> bool:
        """Whether the service has answered, and has not been lost since."""
        return self._state.phase is Phase.CONNECTED

    def connected(self) -> None:
        """The exchange reports that the service has answered."""
        if not self.is_connected:
            self._connected_at = asyncio.get_running_loop().time()
            self._state = LinkState(Phase.CONNECTED, self._state.address)
            log.info("%s: connected to the %s at %s", self._purpose, self._name, self._state.address)

    async def run(self, *, must_connect: bool = False) -> None:
        """Keeps the exchange going until it is DONE, or `finish` has been called and it fails.

        Args:
            must_connect: an attempt that fails before the service has ever answered ends the link.

        Raises:
            PbkvError: with `must_connect`, why the service was not reached.
        """
        self._stopped.clear()
        self._state = LinkState(Phase.SEARCHING)
        ever_connected = not must_connect
        try:
            while True:
                last = self._finishing.is_set()
                verdict, error = await self._attempt()
                ever_connected |= self.is_connected
                if verdict is Verdict.DONE:
                    return
                if verdict is Verdict.LOST:
                    self._lost(error)
                    if not ever_connected:
                        raise error
                    if last:
                        return
                    await wait_for(self._finishing, self._backoff.pause_s(self._failures))
        finally:
            self._state = LinkState(Phase.STOPPED, problem=self._state.problem)
            self._stopped.set()

    async def finish(self, timeout_s: float) -> bool:
        """Waits until `run` has returned; returns whether it has, within `timeout_s` seconds.

        A pause ends at once, and the attempt that follows is the last one. It is up to the exchange to return DONE soon.
        """
        self._finishing.set()
        return await wait_for(self._stopped, timeout_s)

    async def _attempt(self) -> tuple[Verdict, PbkvError]:
        """One search and one exchange: how it ended, and with which error if it is LOST."""
        try:
            address = await self._services.service_address(self._name)
            if address is None:
                raise Unavailable(f"no {self._name} is announced")
            if not (self.is_connected and self._state.address == address):
                self._state = LinkState(Phase.CONNECTING, address, self._state.problem)
            async with connect(address) as channel:
                verdict = await self._run_exchange(channel, address)
        except PbkvError as error:
            return Verdict.LOST, error
        except aio.AioRpcError as error:
            return Verdict.LOST, from_rpc(error)
        return verdict, Unavailable(f"the {self._name} has ended the exchange")

    async def _run_exchange(self, channel: aio.Channel, address: str) -> Verdict:
        async def exchange() -> Verdict:
            return await self._exchange(channel)

        running = asyncio.create_task(exchange(), name=self._purpose)
        try:
            while not running.done():
                await asyncio.wait([running], timeout=self._lookup_interval_s)
                if not running.done() and (new := await self._new_address(address)):
                    log.info("%s: the %s has moved from %s to %s", self._purpose, self._name, address, new)
                    await cancel(running)
                    if running.cancelled():
                        return Verdict.AGAIN
        finally:
            await cancel(running)
            if not running.cancelled():
                running.exception()  # asyncio complains of exceptions that are never looked at
        if running.cancelled():  # grpc does that to those who wait for a call whose channel it closes
            raise Unavailable("the exchange was cancelled")
        return running.result()

    async def _new_address(self, address: str) -> str | None:
        """Where the service has moved to; None if it has not, or if that is unknown."""
        try:
            present = await self._services.service_address(self._name)
        except Unavailable:
            return None
        return present if present != address else None

    def _lost(self, error: PbkvError) -> None:
        if self.is_connected:
            log.warning("%s: lost the %s at %s: %s", self._purpose, self._name, self._state.address, error)
            if asyncio.get_running_loop().time() - self._connected_at >= self._backoff.most_s:
                self._failures = 0
        self._failures += 1
        self._state = LinkState(Phase.SEARCHING, problem=str(error))
