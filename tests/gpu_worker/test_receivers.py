"""Receivers of a worker: tickets that end, and what waits for clients that take nothing."""

import asyncio
from collections import Counter

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import PermissionDenied, ResourceExhausted
from pbkv_cluster.gpu_worker.direct import receivers as module
from pbkv_cluster.gpu_worker.direct import tickets as tickets_module
from pbkv_cluster.gpu_worker.direct.receivers import ConnectedReceiver, ReceiverLost, Receivers
from pbkv_cluster.gpu_worker.direct.tickets import TICKET_S, ReceiverKey
from pbkv_cluster.rpc.steps import outbox
from pbkv_cluster.rpc.v1 import workflow_pb2

EVENT = workflow_pb2.StepEvent(tokens=workflow_pb2.StepEvent.Tokens(text="x" * 100))


def key(number: int, tenant: str = "") -> ReceiverKey:
    return ReceiverKey(tenant, number.to_bytes(16))


def invite(receivers: Receivers, number: int, tenant: str = "") -> bytes:
    ticket = receivers.invite(key(number, tenant))
    assert ticket is not None
    return ticket


def connect(receivers: Receivers, number: int, tenant: str = "") -> ConnectedReceiver:
    return receivers.connect(invite(receivers, number, tenant))[1]


def test_a_ticket_ends_after_its_time() -> None:
    clock = ManualClock()
    receivers = Receivers(clock)
    early, late = invite(receivers, 1), invite(receivers, 2)
    clock.advance(TICKET_S / 2)
    receivers.connect(early)
    clock.advance(TICKET_S / 2)
    with pytest.raises(PermissionDenied):
        receivers.connect(late)


def test_a_client_that_never_comes_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", 3)
    receivers = Receivers(ManualClock())
    tickets = [invite(receivers, number) for number in range(5)]
    for ticket in tickets[:2]:
        with pytest.raises(PermissionDenied):
            receivers.connect(ticket)
    assert [receivers.connect(ticket)[0] for ticket in tickets[2:]] == [key(2), key(3), key(4)]


def test_a_tenants_invitations_leave_room_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", 18)
    receivers = Receivers(ManualClock())
    blue = invite(receivers, 1, "blue")
    red = [invite(receivers, number, "red") for number in range(100)]
    assert receivers.connect(blue)[0] == key(1, "blue")
    assert receivers.connect(red[-1])[0] == key(99, "red")
    with pytest.raises(PermissionDenied):
        receivers.connect(red[50])
    connect(receivers, 1, "green")


def test_who_finds_no_room_for_a_ticket_is_invited_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", 2)
    clock = ManualClock()
    receivers = Receivers(clock)
    red, blue = invite(receivers, 1, "red"), invite(receivers, 1, "blue")
    assert receivers.invite(key(1, "green")) is None
    receivers.connect(red)
    connect(receivers, 1, "green")
    receivers.connect(blue)
    invite(receivers, 2, "red")
    invite(receivers, 2, "blue")
    clock.advance(TICKET_S)
    connect(receivers, 2, "green")


def test_a_tenants_receivers_leave_room_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECEIVERS", 9)
    receivers = Receivers(ManualClock())
    red = [connect(receivers, number, "red") for number in range(8)]
    with pytest.raises(ResourceExhausted, match="8 of them of the tenant"):
        connect(receivers, 8, "red")
    connect(receivers, 1, "blue")
    red[0] = connect(receivers, 0, "red")  # in its own place
    for number, receiver in enumerate(red):
        receivers.disconnect(key(number, "red"), receiver)
    for number in range(4):
        connect(receivers, number, "red")


def test_receivers_are_of_one_tenant_and_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECEIVERS", 2)
    receivers = Receivers(ManualClock())
    red = connect(receivers, 1, "red")
    blue = connect(receivers, 1, "blue")
    assert receivers.find(key(1, "red")) is red
    assert receivers.find(key(1, "blue")) is blue
    assert receivers.find(key(1)) is None
    with pytest.raises(ResourceExhausted):
        connect(receivers, 2)
    again = connect(receivers, 1, "red")
    assert receivers.find(key(1, "red")) is again
    assert not red.is_connected
    receivers.disconnect(key(1, "red"), red)  # the end of the connection of before
    assert receivers.find(key(1, "red")) is again


async def test_a_step_waits_for_a_client_that_takes_nothing_and_ends_when_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING_BYTES", 250)
    receivers = Receivers(ManualClock())
    receiver = connect(receivers, 1)
    for _ in range(3):
        await receiver.room()
        receiver.send(1, EVENT)
    waits = asyncio.create_task(receiver.room())
    await asyncio.sleep(0)
    assert not waits.done()
    assert len(receiver.outbox.take().events) == 3
    await asyncio.sleep(0)
    assert not waits.done()  # that message is on its way
    assert receiver.outbox.take() is None
    await waits
    for _ in range(3):
        receiver.send(1, EVENT)
    waits = asyncio.create_task(receiver.room())
    await asyncio.sleep(0)
    receivers.disconnect(key(1), receiver)
    with pytest.raises(ReceiverLost):
        await waits
    with pytest.raises(ReceiverLost):
        receiver.send(1, EVENT)
    assert receiver.outbox.take() is None


async def test_those_that_take_nothing_leave_room_to_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 10 * EVENT.ByteSize()
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", bound)
    receivers = Receivers(ManualClock())
    idle = [connect(receivers, number, "red") for number in range(10)]
    sent = Counter[int]()

    async def fill(number: int) -> None:
        for _ in range(100):
            await idle[number].room()
            idle[number].send(1, EVENT)
            sent[number] += 1

    filling = [asyncio.create_task(fill(number)) for number in range(10)]
    for _ in range(200):
        await asyncio.sleep(0)
    assert sent.total() <= 10 + len(idle)
    prompt = connect(receivers, 1, "blue")
    for _ in range(100):
        await asyncio.wait_for(prompt.room(), 10.0)
        prompt.send(1, EVENT)
        assert len(prompt.outbox.take().events) == 1
        assert prompt.outbox.take() is None
    receivers.disconnect_all()
    ended = await asyncio.gather(*filling, return_exceptions=True)
    assert {type(each) for each in ended} == {ReceiverLost}
    again = connect(receivers, 1, "red")
    for _ in range(5):  # what has waited for those that have gone takes no room
        await asyncio.wait_for(again.room(), 10.0)
        again.send(1, EVENT)
