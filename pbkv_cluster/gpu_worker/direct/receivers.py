"""The receivers of clients that are connected to this worker.

Nobody is asked for an API key here. Who may connect has been told a ticket by a gateway, which knows whose steps it has sent
with the receiver's id; a ticket is random, good once, and for a short time. The client in turn knows a worker by its knowing
the id. What is sent to a receiver is of steps that a gateway has sent with its id, and with its tenant.
"""

from collections import Counter

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.fairness.fair_room import has_fair_room
from pbkv_cluster.gpu_worker.direct.tickets import ReceiverKey, Tickets
from pbkv_cluster.rpc.steps.outbox import Outbox, SharedRoom
from pbkv_cluster.rpc.v1 import worker_pb2, workflow_pb2

MAX_RECEIVERS = 4096
MAX_WAITING_BYTES = 256 << 20  # of events for all receivers together, see `SharedRoom`


class ReceiverLost(Exception):
    """A receiver is connected no longer."""


class ConnectedReceiver:
    """One that is connected."""

    def __init__(self, shared_room: SharedRoom) -> None:
        """`shared_room`: for what waits for all receivers of the worker."""
        self.outbox = Outbox(worker_pb2.ReceiveOutputResponse, shared_room)
        self.is_connected = True

    async def room(self) -> None:
        """Waits while its client takes nothing.

        Raises:
            ReceiverLost: it has gone.
        """
        await self.outbox.room()
        self._check()

    def send(self, call: int, event: workflow_pb2.StepEvent) -> None:
        """Raises:
        ReceiverLost: it has gone.
        """
        self._check()
        self.outbox.add(event.ByteSize()).add(call=call, event=event)

    def disconnect(self) -> None:
        self.is_connected = False
        self.outbox.close()

    def _check(self) -> None:
        if not self.is_connected:
            raise ReceiverLost


class Receivers:
    """All of them."""

    def __init__(self, clock: Clock) -> None:
        self._tickets = Tickets(clock)
        self._connected: dict[ReceiverKey, ConnectedReceiver] = {}
        self._of_tenant: Counter[str] = Counter()
        self._shared_room = SharedRoom(MAX_WAITING_BYTES)

    def find(self, key: ReceiverKey) -> ConnectedReceiver | None:
        """A receiver that is connected; None: it is not."""
        return self._connected.get(key)

    def invite(self, key: ReceiverKey) -> bytes | None:
        """A new ticket for a receiver; None: there are too many."""
        return self._tickets.make(key)

    def connect(self, ticket: bytes) -> tuple[ReceiverKey, ConnectedReceiver]:
        """Has a ticket used. A receiver that connects again takes the place of itself.

        Raises:
            PermissionDenied: the ticket is unknown, has been used, or is too old.
            ResourceExhausted: too many are connected, or those of the tenant leave room to others.
        """
        key = self._tickets.use(ticket)
        if (before := self._connected.get(key)) is not None:
            self.disconnect(key, before)
        elif not has_fair_room(self._of_tenant[key.tenant], len(self._connected), MAX_RECEIVERS):
            raise ResourceExhausted(
                f"{len(self._connected)} of {MAX_RECEIVERS} receivers are connected already,"
                f" {self._of_tenant[key.tenant]} of them of the tenant"
            )
        receiver = self._connected[key] = ConnectedReceiver(self._shared_room)
        self._of_tenant[key.tenant] += 1
        return key, receiver

    def disconnect(self, key: ReceiverKey, receiver: ConnectedReceiver) -> None:
        """A receiver's connection has ended. Harmless when repeated."""
        receiver.disconnect()
        if self._connected.get(key) is receiver:
            del self._connected[key]
            self._of_tenant[key.tenant] -= 1
            if not self._of_tenant[key.tenant]:
                del self._of_tenant[key.tenant]

    def disconnect_all(self) -> None:
        """Has every connection end."""
        for key, receiver in list(self._connected.items()):
            self.disconnect(key, receiver)
