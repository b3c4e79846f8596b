"""KV events over real sockets: what a publisher's cache holds, a subscriber's map of blocks comes to hold."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import BlockLabel, Namespace, chain_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.residency import NOWHERE, Residency, unpack
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.kv_events.event_publisher import KvEventPublisher
from pbkv_cluster.store.kv_events.event_subscriber import KvEventSubscriber
from pbkv_cluster.store.kv_events.messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    MalformedBatch,
    decode,
    encode,
    frame_of,
    number_of,
)
from tests.polling import eventually

ANY = "tcp://127.0.0.1:*"
SPACE = Namespace("m", "r", "f", "l").digest()
WORKER = ("engine", "1")
GPU, HOST = Residency(frozenset({Tier.GPU})), Residency(frozenset({Tier.HOST}), 3)
BOTH = Residency(frozenset({Tier.GPU, Tier.HOST}), 3)


def labels(number: int) -> list[BlockLabel]:
    parent, found = SPACE, []
    for block in range(number):
        tokens = pack([block] * 16)
        (key,) = chain_keys(parent, tokens)
        found.append(BlockLabel(SPACE, parent, key, tokens))
        parent = key
    return found


LABELS = labels(8)


@asynccontextmanager
async def following(publisher: KvEventPublisher, replay: bool = True) -> AsyncIterator[tuple[BlockMap, KvEventSubscriber]]:
    blocks = BlockMap()
    subscriber = KvEventSubscriber(
        publisher.endpoint,
        blocks,
        WORKER,
        "elsewhere",
        SystemClock(),
        replay_endpoint=publisher.replay_endpoint if replay else "",
        topic="kv-events",
    )
    task = asyncio.create_task(subscriber.run())
    try:
        yield blocks, subscriber
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def held(blocks: BlockMap) -> dict[bytes, frozenset[Tier]]:
    return {key: unpack(packed).tiers for key, packed in blocks.blocks(WORKER).items()}


@pytest.mark.parametrize("seed", range(3))
async def test_a_subscriber_comes_to_hold_what_the_publisher_does(seed: int) -> None:
    generator = random.Random(seed)
    publisher, truth = KvEventPublisher(ANY, ANY), dict[bytes, frozenset[Tier]]()
    async with following(publisher) as (blocks, subscriber):

        def change() -> None:
            for label in generator.sample(LABELS, 4):
                residency = generator.choice((GPU, HOST, BOTH, NOWHERE))
                publisher.record(label, residency)
                truth[label.key] = residency.tiers

        def agree() -> bool:
            return subscriber.is_exact and held(blocks) == {key: tiers for key, tiers in truth.items() if tiers}

        def subscribed() -> bool:
            change()  # before the subscription has arrived, this is lost; it is sent again
            return bool(held(blocks))

        await eventually(subscribed)
        for _ in range(5):
            change()
            await eventually(agree)
    publisher.stop()


async def test_who_comes_late_is_sent_what_was_missed() -> None:
    publisher = KvEventPublisher(ANY, ANY)
    for label in LABELS[:4]:
        publisher.record(label, GPU)
    await eventually(lambda: publisher.number == 0)

    async def told(blocks: BlockMap, number: int) -> bool:
        publisher.record(LABELS[7], GPU if number % 2 else HOST)
        return bool(held(blocks))

    async with following(publisher) as (blocks, subscriber):
        numbers = iter(range(1000))
        await eventually(lambda: told(blocks, next(numbers)))
        assert {label.key for label in LABELS[:4]} <= held(blocks).keys()
        assert (subscriber.gaps, subscriber.is_exact) == (1, True)
    async with following(publisher, replay=False) as (blocks, subscriber):
        await eventually(lambda: told(blocks, next(numbers)))
        assert LABELS[0].key not in held(blocks)
        assert not subscriber.is_exact, "what was missed cannot be had"
    publisher.stop()


async def test_a_restarted_engine_holds_nothing_of_what_it_held() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        blocks = BlockMap()
        subscriber = KvEventSubscriber(f"tcp://127.0.0.1:{port}", blocks, WORKER, "elsewhere", SystemClock())
        task = asyncio.create_task(subscriber.run())

        async def sees(number: int, key: int) -> bool:
            stored = {"type": "BlockStored", "block_hashes": [key], "token_ids": [], "block_size": 16}
            socket.send_multipart([b"", frame_of(number), msgpack.packb([0.0, [stored], None])])
            return held(blocks) == {key.to_bytes(8, "big"): frozenset({Tier.GPU})}

        await eventually(lambda: sees(5, 1))
        assert not subscriber.is_exact
        await eventually(lambda: sees(0, 2))
        assert subscriber.is_exact, "nothing of its new life was missed"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_malformed_messages_are_skipped_and_counted() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        subscriber = KvEventSubscriber(f"tcp://127.0.0.1:{port}", BlockMap(), WORKER, "elsewhere", SystemClock())
        task = asyncio.create_task(subscriber.run())

        async def counted() -> bool:
            for frames in ([b""], [b"", b"12", b""], [b"", frame_of(0), b"\xc1"], [b"", frame_of(0), msgpack.packb(7)]):
                socket.send_multipart(frames)
            return subscriber.malformed >= 4

        await eventually(counted)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_an_address_in_use_is_named() -> None:
    publisher = KvEventPublisher(ANY)
    with pytest.raises(StartupError, match=r"kv_events\.endpoint: .*cannot be bound"):
        KvEventPublisher(publisher.endpoint)
    publisher.stop()


KEYS = st.lists(st.binary(min_size=16, max_size=32), max_size=4)
MEDIA = st.sampled_from(["GPU", "CPU"])
PARENTS = st.none() | st.binary(min_size=16, max_size=16)
EVENTS = st.one_of(
    st.builds(BlockStored, KEYS, PARENTS, st.lists(st.integers(0, 1 << 20)), st.integers(1, 64), MEDIA),
    st.builds(BlockRemoved, KEYS, MEDIA),
    st.just(AllBlocksCleared()),
)


@given(st.lists(EVENTS, max_size=5), st.integers(-1, 1 << 62))
def test_what_is_encoded_is_decoded(events: list[BlockStored | BlockRemoved | AllBlocksCleared], number: int) -> None:
    assert decode(encode(events, 1.5, 0)) == events
    assert number_of(frame_of(number)) == number


def test_events_of_other_engines_are_understood() -> None:
    """As arrays, with hashes as numbers, with defaults omitted, with fields and types that are not known here."""
    batch = [
        1.5,
        [
            ["BlockStored", [7, -1], None, [1, 2], 2, None],
            {"type": "BlockStored", "block_hashes": [b"k"], "block_size": 16, "medium": "CPU_PINNED", "cache_salt": "x"},
            {"type": "Unheard", "of": 1},
            ["AllBlocksCleared"],
        ],
        None,
        "more",
    ]
    assert decode(msgpack.packb(batch)) == [
        BlockStored([(7).to_bytes(8, "big"), b"\xff" * 8], None, [1, 2], 2, "GPU"),
        BlockStored([b"k"], None, [], 16, "CPU_PINNED"),
        AllBlocksCleared(),
    ]
    for bad in (b"", b"\xc1", msgpack.packb({}), msgpack.packb([1.0, [{"type": "BlockStored"}]])):
        with pytest.raises(MalformedBatch):
            decode(bad)
