"""Receivers of a worker: tickets that end, and what waits for clients that take nothing."""

import asyncio

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import PermissionDenied, ResourceExhausted
from pbkv_cluster.gpu_worker.direct import receivers as module
from pbkv_cluster.gpu_worker.direct.receivers import TICKET_S, ReceiverKey, ReceiverLost, Receivers
from pbkv_cluster.rpc.steps import outbox
from pbkv_cluster.rpc.v1 import workflow_pb2

EVENT = workflow_pb2.StepEvent(tokens=workflow_pb2.StepEvent.Tokens(text="x" * 100))


def key(number: int, tenant: str = "") -> ReceiverKey:
    return ReceiverKey(tenant, number.to_bytes(16))


def test_a_ticket_ends_after_its_time() -> None:
    clock = ManualClock()
    receivers = Receivers(clock)
    early, late = receivers.invite(key(1)), receivers.invite(key(2))
    clock.advance(TICKET_S / 2)
    receivers.connect(early)
    clock.advance(TICKET_S / 2)
    with pytest.raises(PermissionDenied):
        receivers.connect(late)


def test_a_client_that_never_comes_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TICKETS", 3)
    receivers = Receivers(ManualClock())
    tickets = [receivers.invite(key(number)) for number in range(5)]
    for ticket in tickets[:2]:
        with pytest.raises(PermissionDenied):
            receivers.connect(ticket)
    assert [receivers.connect(ticket)[0] for ticket in tickets[2:]] == [key(2), key(3), key(4)]


def test_receivers_are_of_one_tenant_and_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECEIVERS", 2)
    receivers = Receivers(ManualClock())
    _, red = receivers.connect(receivers.invite(key(1, "red")))
    _, blue = receivers.connect(receivers.invite(key(1, "blue")))
    assert receivers.find(key(1, "red")) is red
    assert receivers.find(key(1, "blue")) is blue
    assert receivers.find(key(1)) is None
    with pytest.raises(ResourceExhausted):
        receivers.connect(receivers.invite(key(2)))
    _, again = receivers.connect(receivers.invite(key(1, "red")))
    assert receivers.find(key(1, "red")) is again
    assert not red.is_connected
    receivers.disconnect(key(1, "red"), red)  # the end of the connection of before
    assert receivers.find(key(1, "red")) is again


async def test_a_step_waits_for_a_client_that_takes_nothing_and_ends_when_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING_BYTES", 250)
    receivers = Receivers(ManualClock())
    found, receiver = receivers.connect(receivers.invite(key(1)))
    for _ in range(3):
        await receiver.room()
        receiver.send(1, EVENT)
    waits = asyncio.create_task(receiver.room())
    await asyncio.sleep(0)
    assert not waits.done()
    assert len(receiver.outbox.take().events) == 3
    await waits
    for _ in range(3):
        receiver.send(1, EVENT)
    waits = asyncio.create_task(receiver.room())
    await asyncio.sleep(0)
    receivers.disconnect(found, receiver)
    with pytest.raises(ReceiverLost):
        await waits
    with pytest.raises(ReceiverLost):
        receiver.send(1, EVENT)
    assert receiver.outbox.take() is None
