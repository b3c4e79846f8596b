"""The client's receiver: how long it rests when workers cannot be reached."""

import secrets
import socket
from collections.abc import Sequence

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.workflow.step_events import Invitation
from pbkv_cluster.rpc.security import Access
from pbkv_cluster.rpc.steps.receiver import Receiver
from tests.polling import eventually

PATIENCE_S = 20.0
REST_S = 10.0  # as docs/deploy.md has it


def deaf(count: int) -> Sequence[str]:
    """Addresses at which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


async def fail(receiver: Receiver, at_once: int) -> None:
    """Has so many connections end in nothing, all of them under way together."""
    for address in deaf(at_once):
        receiver.accept(Invitation(address, secrets.token_bytes(16), ""))
    assert receiver.is_of_use
    await eventually(lambda: not receiver.is_of_use, PATIENCE_S)


@pytest.mark.parametrize("at_once", [1, 7])
async def test_workers_that_cannot_be_reached_at_once_are_one_failure(at_once: int) -> None:
    clock = ManualClock()
    receiver = Receiver(Access(), clock)
    for rest_s in (REST_S, 2 * REST_S, 4 * REST_S):
        await fail(receiver, at_once)
        clock.advance(rest_s - 0.1)
        assert not receiver.is_of_use
        clock.advance(0.1)
        assert receiver.is_of_use


async def test_an_invitation_is_not_followed_while_it_rests() -> None:
    receiver = Receiver(Access(), ManualClock())
    await fail(receiver, 1)
    receiver.accept(Invitation(deaf(1)[0], secrets.token_bytes(16), ""))
    assert not receiver.is_of_use
