"""Outboxes that share their room: bounded together, and whoever takes what is sent goes on."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.rpc.steps.outbox import Outbox, SharedRoom
from pbkv_cluster.rpc.v1.worker_pb2 import ReceiveOutputResponse

CAPACITY_BYTES = 1000
EVENT_BYTES = 50
OUTBOXES = 5


async def has_room(outbox: Outbox) -> bool:
    waits = asyncio.ensure_future(outbox.room())
    await asyncio.sleep(0)
    has_room = waits.done()
    waits.cancel()
    return has_room


async def use(actions: list[tuple[int, str]]) -> None:
    shared = SharedRoom(CAPACITY_BYTES)
    outboxes = [Outbox(ReceiveOutputResponse, shared) for _ in range(OUTBOXES)]
    held, sending = [0] * OUTBOXES, [0] * OUTBOXES
    for number, action in actions:
        match action:
            case "add":
                if await has_room(outboxes[number]):
                    outboxes[number].add(EVENT_BYTES).add(call=1)
                    held[number] += EVENT_BYTES
                else:
                    assert held[number], "who holds nothing has room"
            case "take":
                held[number] -= sending[number]
                response = outboxes[number].take()
                sending[number] = EVENT_BYTES * len(response.events) if response is not None else 0
            case _:
                outboxes[number].close()
                held[number] = sending[number] = 0
        assert shared.bytes_waiting == sum(held)
        assert sum(held) <= CAPACITY_BYTES + OUTBOXES * EVENT_BYTES


@given(st.lists(st.tuples(st.integers(0, OUTBOXES - 1), st.sampled_from(["add"] * 6 + ["take", "close"])), max_size=150))
def test_what_waits_is_bounded_and_nobody_is_held_up_by_others(actions: list[tuple[int, str]]) -> None:
    asyncio.run(use(actions))


async def test_one_that_waits_goes_on_when_its_own_has_been_sent() -> None:
    shared = SharedRoom(CAPACITY_BYTES)
    full, other = Outbox(ReceiveOutputResponse, shared), Outbox(ReceiveOutputResponse, shared)
    for outbox in (full, other):
        while await has_room(outbox):
            outbox.add(EVENT_BYTES).add(call=1)
    waits = asyncio.ensure_future(other.room())
    assert other.take() is not None
    await asyncio.sleep(0)
    assert not waits.done(), "it is being sent"
    assert other.take() is None
    await asyncio.wait_for(waits, 10.0)


async def test_one_that_holds_nothing_has_room_when_there_is_none() -> None:
    shared = SharedRoom(CAPACITY_BYTES)
    large, other = Outbox(ReceiveOutputResponse, shared), Outbox(ReceiveOutputResponse, shared)
    large.add(CAPACITY_BYTES).add(call=1)
    assert not await has_room(large)
    assert await has_room(other)
