"""The receivers of clients: those that are connected to this worker, and tickets for those that may be.

Nobody is asked for an API key here. Who may connect has been told a ticket by a gateway, which knows whose steps it has sent
with the receiver's id; a ticket is random, good once, and for a short time. The client in turn knows a worker by its knowing
the id. What is sent to a receiver is of steps that a gateway has sent with its id, and with its tenant.
"""

import secrets
from collections import OrderedDict
from typing import NamedTuple

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import PermissionDenied, ResourceExhausted
from pbkv_cluster.rpc.steps.outbox import Outbox
from pbkv_cluster.rpc.v1 import worker_pb2, workflow_pb2

MAX_RECEIVERS = 4096
MAX_TICKETS = 4096  # the oldest goes first
TICKET_S = 10.0
_TICKET_BYTES = 16


class ReceiverKey(NamedTuple):
    """What a receiver is known by: those of one client that are of different tenants have nothing to do with each other."""

    tenant: str
    id: bytes


class ReceiverLost(Exception):
    """A receiver is connected no longer."""


class ConnectedReceiver:
    """One that is connected."""

    def __init__(self) -> None:
        self.outbox = Outbox(worker_pb2.ReceiveOutputResponse)
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
        self._clock = clock
        self._connected: dict[ReceiverKey, ConnectedReceiver] = {}
        self._tickets: OrderedDict[bytes, tuple[ReceiverKey, float]] = OrderedDict()  # and when each ends, in that order

    def find(self, key: ReceiverKey) -> ConnectedReceiver | None:
        """A receiver that is connected; None: it is not."""
        return self._connected.get(key)

    def invite(self, key: ReceiverKey) -> bytes:
        """A new ticket for a receiver."""
        self._drop_old()
        if len(self._tickets) >= MAX_TICKETS:
            self._tickets.popitem(last=False)
        ticket = secrets.token_bytes(_TICKET_BYTES)
        self._tickets[ticket] = key, self._clock.now() + TICKET_S
        return ticket

    def connect(self, ticket: bytes) -> tuple[ReceiverKey, ConnectedReceiver]:
        """Has a ticket used. A receiver that connects again takes the place of itself.

        Raises:
            PermissionDenied: the ticket is unknown, has been used, or is too old.
            ResourceExhausted: too many are connected.
        """
        self._drop_old()
        # The ticket is looked up, not compared with others; and who guesses one has 128 bits to guess in ten seconds.
        found = self._tickets.pop(ticket, None)
        if found is None:
            raise PermissionDenied("the ticket is unknown, has been used, or is too old")
        key, _ = found
        if (before := self._connected.pop(key, None)) is not None:
            before.disconnect()
        if len(self._connected) >= MAX_RECEIVERS:
            raise ResourceExhausted(f"{MAX_RECEIVERS} receivers are connected already")
        receiver = self._connected[key] = ConnectedReceiver()
        return key, receiver

    def disconnect(self, key: ReceiverKey, receiver: ConnectedReceiver) -> None:
        """A receiver's connection has ended. Harmless when repeated."""
        receiver.disconnect()
        if self._connected.get(key) is receiver:
            del self._connected[key]

    def disconnect_all(self) -> None:
        """Has every connection end."""
        for key, receiver in list(self._connected.items()):
            self.disconnect(key, receiver)

    def _drop_old(self) -> None:
        now = self._clock.now()
        while self._tickets and next(iter(self._tickets.values()))[1] <= now:
            self._tickets.popitem(last=False)
