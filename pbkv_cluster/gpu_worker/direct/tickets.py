"""Tickets: with one of them, the receiver for which it was made may connect to this worker, once, for a short time."""

import secrets
from collections import OrderedDict
from typing import NamedTuple

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import PermissionDenied
from pbkv_cluster.core.fairness.fair_room import has_fair_room

MAX_TICKETS = 4096
TICKET_S = 10.0
_TICKET_BYTES = 16


class ReceiverKey(NamedTuple):
    """What a receiver is known by: those of one client that are of different tenants have nothing to do with each other."""

    tenant: str
    id: bytes


class Tickets:
    """All that may be used yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: OrderedDict[bytes, tuple[ReceiverKey, float]] = OrderedDict()  # and when each ends, in that order
        self._of_tenant: dict[str, OrderedDict[bytes, None]] = {}  # the oldest first

    def make(self, key: ReceiverKey) -> bytes | None:
        """A new ticket for a receiver. A tenant that has its share of them loses its oldest; None: it has none, and others have
        them all.
        """
        self._drop_old()
        own = self._of_tenant.get(key.tenant, OrderedDict())
        if not has_fair_room(len(own), len(self._all), MAX_TICKETS):
            if not own:
                return None
            self._remove(next(iter(own)))
        ticket = secrets.token_bytes(_TICKET_BYTES)
        self._all[ticket] = key, self._clock.now() + TICKET_S
        self._of_tenant.setdefault(key.tenant, OrderedDict())[ticket] = None
        return ticket

    def use(self, ticket: bytes) -> ReceiverKey:
        """Whose ticket it is, which is good no longer.

        Raises:
            PermissionDenied: it is unknown, has been used, or is too old.
        """
        self._drop_old()
        # The ticket is looked up, not compared with others; and who guesses one has 128 bits to guess in ten seconds.
        if ticket not in self._all:
            raise PermissionDenied("the ticket is unknown, has been used, or is too old")
        return self._remove(ticket)

    def _remove(self, ticket: bytes) -> ReceiverKey:
        key, _ = self._all.pop(ticket)
        own = self._of_tenant[key.tenant]
        del own[ticket]
        if not own:
            del self._of_tenant[key.tenant]
        return key

    def _drop_old(self) -> None:
        now = self._clock.now()
        while self._all:
            ticket, (_, ends_at) = next(iter(self._all.items()))
            if ends_at > now:
                return
            self._remove(ticket)
