"""KV events over real sockets: what a publisher's cache holds, its subscriber comes to know."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import BlockLabel, Namespace, chain_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.residency import NOWHERE, Residency
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.kv_events.event_publisher import KvEventPublisher
from pbkv_cluster.store.kv_events.event_subscriber import KvEventSubscriber
from pbkv_cluster.store.kv_events.messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    MalformedBatch,
    decode,
    encode,
    extra_of,
    frame_of,
    number_of,
)
from tests.polling import eventually

ANY = "tcp://127.0.0.1:*"
SPACE = Namespace("m", "r", "f", "l").digest()
TIERS = {"GPU": Tier.GPU, "CPU": Tier.HOST}
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


class Recorded:
    """The tiers of each block, by its hash."""

    def __init__(self) -> None:
        self.held: dict[bytes, frozenset[Tier]] = {}
        self.keeps = False  # a tier that is not emptied with the engine's own cache

    def clear(self) -> None:
        self.held.clear()

    def emptied(self) -> bool:
        if self.keeps:
            return False
        self.clear()
        return True

    def stored(self, event: BlockStored) -> None:
        for key in event.keys:
            self.held[key] = self.held.get(key, frozenset()) | {TIERS[event.medium]}

    def removed(self, event: BlockRemoved) -> None:
        for key in event.keys:
            self.held[key] = self.held.get(key, frozenset()) - {TIERS[event.medium]}
            if not self.held[key]:
                del self.held[key]


@asynccontextmanager
async def following(endpoint: str, replay_endpoint: str = "") -> AsyncIterator[tuple[Recorded, KvEventSubscriber]]:
    blocks = Recorded()
    subscriber = KvEventSubscriber(endpoint, blocks, SystemClock(), replay_endpoint=replay_endpoint, topic="kv-events")
    task = asyncio.create_task(subscriber.run())
    try:
        yield blocks, subscriber
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("seed", range(3))
async def test_a_subscriber_comes_to_hold_what_the_publisher_does(seed: int) -> None:
    generator = random.Random(seed)
    publisher, truth = KvEventPublisher(ANY, ANY), dict[bytes, frozenset[Tier]]()
    async with following(publisher.endpoint, publisher.replay_endpoint) as (blocks, subscriber):

        def change() -> None:
            for label in generator.sample(LABELS, 4):
                residency = generator.choice((GPU, HOST, BOTH, NOWHERE))
                publisher.record(label, residency)
                truth[label.key] = residency.tiers

        def agree() -> bool:
            return subscriber.is_exact and blocks.held == {key: tiers for key, tiers in truth.items() if tiers}

        def subscribed() -> bool:
            change()  # before the subscription has arrived, this is lost; it is sent again
            return bool(blocks.held)

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

    async def told(blocks: Recorded, number: int) -> bool:
        publisher.record(LABELS[7], GPU if number % 2 else HOST)
        return bool(blocks.held)

    async with following(publisher.endpoint, publisher.replay_endpoint) as (blocks, subscriber):
        numbers = iter(range(1000))
        await eventually(lambda: told(blocks, next(numbers)))
        assert {label.key for label in LABELS[:4]} <= blocks.held.keys()
        assert subscriber.is_exact
    async with following(publisher.endpoint) as (blocks, subscriber):
        await eventually(lambda: told(blocks, next(numbers)))
        assert LABELS[0].key not in blocks.held
        assert not subscriber.is_exact, "what was missed cannot be had"
    publisher.stop()


async def test_a_tier_is_told_when_the_block_is_there_and_as_long_as_it_is() -> None:
    publisher, key = KvEventPublisher(ANY, ANY), LABELS[0].key
    on_its_way, arrived = Residency(BOTH.tiers), BOTH
    async with following(publisher.endpoint, publisher.replay_endpoint) as (blocks, _):

        async def told(residency: Residency) -> frozenset[Tier]:
            """What is known of the block once a later change is known."""
            publisher.record(LABELS[0], residency)
            publisher.record(LABELS[1], GPU)
            await eventually(lambda: LABELS[1].key in blocks.held)
            publisher.record(LABELS[1], NOWHERE)
            await eventually(lambda: LABELS[1].key not in blocks.held)
            return blocks.held.get(key, frozenset())

        async def subscribed() -> bool:
            publisher.record(LABELS[2], GPU if LABELS[2].key not in blocks.held else NOWHERE)
            return bool(blocks.held)

        await eventually(subscribed)
        assert await told(on_its_way) == {Tier.GPU}
        assert await told(arrived) == {Tier.GPU, Tier.HOST}
        assert await told(HOST) == {Tier.HOST}
        assert await told(Residency(frozenset({Tier.HOST, Tier.GPU}))) == {Tier.GPU, Tier.HOST}
        assert await told(NOWHERE) == frozenset()
        assert await told(Residency(HOST.tiers)) == frozenset()
    publisher.stop()


class Engine:
    """Publishes one block, whose hash is the batch's number, in each batch; it can die, and be followed by another."""

    def __init__(self) -> None:
        self._contexts: tuple[zmq.Context[zmq.Socket[bytes]], zmq.asyncio.Context] = (zmq.Context(), zmq.asyncio.Context())
        self._ports = [0, 0]
        self._sockets: list[Any] = []
        self._answering: asyncio.Task[None] | None = None
        self._life = 0
        self.sent: list[bytes] = []
        self.buffered_from = 0
        self.endpoints = ["", ""]
        self.start()

    async def restart(self) -> None:
        """Ends this life; in the next one, the same ports tell of other blocks, from batch 0 on."""
        self.die()

        def started() -> bool:
            try:
                self.start()
            except zmq.ZMQError:  # its ports are freed in the background
                self.die()
                return False
            return True

        await eventually(started)

    def start(self) -> None:
        self._life += 1
        self.sent.clear()
        for at, kind in enumerate((zmq.PUB, zmq.ROUTER)):
            socket: Any = self._contexts[at].socket(kind)
            socket.setsockopt(zmq.LINGER, 0)
            self._sockets.append(socket)
            if self._ports[at]:
                socket.bind(f"tcp://127.0.0.1:{self._ports[at]}")
            else:
                self._ports[at] = socket.bind_to_random_port("tcp://127.0.0.1")
            self.endpoints[at] = f"tcp://127.0.0.1:{self._ports[at]}"

        self._answering = asyncio.create_task(self._answer(self._sockets[1]))

    def die(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()

    def close(self) -> None:
        self.die()
        for context in self._contexts:
            context.term()

    def key(self, number: int, life: int | None = None) -> bytes:
        return (1000 * (life or self._life) + number).to_bytes(8, "big")

    def store(self, *, lost: bool = False) -> None:
        """Publishes the next batch; a lost one does not arrive."""
        number = len(self.sent)
        stored = BlockStored([self.key(number)], None, [number] * 16, 16, "GPU")
        self.sent.append(encode([stored], 1000.0 * self._life + number, 0))
        if not lost:
            self.repeat()

    def repeat(self) -> None:
        """Publishes the latest batch, again."""
        self._sockets[0].send_multipart([b"kv-events", frame_of(len(self.sent) - 1), self.sent[-1]])

    async def _answer(self, socket: zmq.asyncio.Socket) -> None:
        """Sends again what subscribers ask for, for ever."""
        while True:
            client, *_, asked = await socket.recv_multipart()
            for number in range(max(number_of(asked), self.buffered_from), len(self.sent)):
                await socket.send_multipart([client, b"", b"kv-events", frame_of(number), self.sent[number]])
            await socket.send_multipart([client, b"", b"kv-events", frame_of(-1), b""])

    def all_keys(self, since: int = 0) -> set[bytes]:
        return {self.key(number) for number in range(since, len(self.sent))}


@asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    publisher = Engine()
    try:
        yield publisher
    finally:
        publisher.close()


async def arrives(publisher: Engine, blocks: Recorded) -> None:
    """The latest batch, sent until the subscription is there."""

    def there() -> bool:
        publisher.repeat()
        return publisher.key(len(publisher.sent) - 1) in blocks.held

    await eventually(there)


async def test_a_gap_is_filled_and_nothing_is_entered_twice() -> None:
    async with engine() as publisher, following(*publisher.endpoints) as (blocks, subscriber):
        publisher.store()
        await arrives(publisher, blocks)
        for _ in range(3):
            publisher.store(lost=True)
        publisher.store()
        await eventually(lambda: blocks.held.keys() == publisher.all_keys())
        assert (subscriber.is_exact, subscriber.gaps, subscriber.restarts) == (True, 1, 0)


async def test_what_cannot_be_had_any_more_ends_exactness_until_the_engine_restarts() -> None:
    async with engine() as publisher, following(*publisher.endpoints) as (blocks, subscriber):
        publisher.store()
        await arrives(publisher, blocks)
        publisher.store(lost=True)
        publisher.store(lost=True)
        publisher.buffered_from = 2
        publisher.store()
        await eventually(lambda: publisher.key(3) in blocks.held)
        assert not subscriber.is_exact
        publisher.buffered_from = 0
        await publisher.restart()
        publisher.store()
        await arrives(publisher, blocks)
        assert blocks.held.keys() == publisher.all_keys()
        assert (subscriber.is_exact, subscriber.restarts) == (True, 1)


@pytest.mark.parametrize("batches", [1, 3, 6])
async def test_a_restarted_engine_is_known_whatever_number_it_has_reached(batches: int) -> None:
    """A lower number than before, the same one, or a higher one, which looks like a gap."""
    async with engine() as publisher, following(*publisher.endpoints) as (blocks, subscriber):
        for _ in range(3):
            publisher.store()
        await arrives(publisher, blocks)
        await publisher.restart()
        for _ in range(batches - 1):
            publisher.store(lost=True)
        publisher.store()
        await arrives(publisher, blocks)
        assert blocks.held.keys() == publisher.all_keys(), "all of its new life, and nothing of the one before"
        assert (subscriber.is_exact, subscriber.restarts) == (True, 1)


@pytest.mark.parametrize("replay", [True, False])
async def test_an_engine_that_was_away_must_prove_that_it_has_not_restarted(replay: bool) -> None:
    """Its next batch has just the number that is expected. Without a proof, what it held is forgotten."""
    replays = slice(None) if replay else slice(1)
    async with engine() as publisher, following(*publisher.endpoints[replays]) as (blocks, subscriber):
        publisher.store()
        await arrives(publisher, blocks)
        subscriber.doubt()
        publisher.store()
        await arrives(publisher, blocks)
        if replay:
            assert blocks.held.keys() == publisher.all_keys()
            assert (subscriber.is_exact, subscriber.restarts) == (True, 0)
        else:
            assert blocks.held.keys() == publisher.all_keys(since=1)
            assert not subscriber.is_exact
        await publisher.restart()
        publisher.store(lost=True)
        publisher.store(lost=True)
        subscriber.doubt()
        publisher.store()
        await arrives(publisher, blocks)
        assert blocks.held.keys() == publisher.all_keys(since=0 if replay else 2)
        assert subscriber.is_exact is replay


async def test_malformed_messages_are_skipped_and_counted() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        async with following(f"tcp://127.0.0.1:{port}") as (_, subscriber):

            async def counted() -> bool:
                topic = b"kv-events"
                for frames in (
                    [topic],
                    [topic, b"12", b""],
                    [topic, frame_of(0), b"\xc1"],
                    [topic, frame_of(0), msgpack.packb(7)],
                ):
                    socket.send_multipart(frames)
                return subscriber.malformed >= 4

            await eventually(counted)


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
            {"type": "BlockStored", "block_hashes": [b"w"], "block_size": 16, "kv_cache_spec_kind": "sliding_window"},
            {"type": "BlockStored", "block_hashes": [b"n"], "token_ids": [], "block_size": 0, "medium": "CPU", "group_idx": 0},
            {
                "type": "BlockStored",
                "block_hashes": [b"o", b"p"],
                "token_ids": [1, 2],
                "block_size": 1,
                "extra_keys": [None, None],
            },
            {"type": "BlockRemoved", "block_hashes": [b"w"], "group_idx": 1},
            {"type": "Unheard", "of": 1},
            ["AllBlocksCleared"],
        ],
        None,
        "more",
    ]
    assert decode(msgpack.packb(batch)) == [
        BlockStored([(7).to_bytes(8, "big"), b"\xff" * 8], None, [1, 2], 2, "GPU"),
        BlockStored([b"k"], None, [], 16, "CPU_PINNED", [extra_of(["x"])]),
        BlockStored([b"n"], None, [], 0, "CPU"),
        BlockStored([b"o", b"p"], None, [1, 2], 1, "GPU", [b"", b""]),  # that nothing distinguishes them is told, too
        BlockRemoved([b"w\0\1"], "GPU"),
        AllBlocksCleared(),
    ]


def stored(**fields: object) -> bytes:
    """A batch with one event, some of whose fields are others."""
    event = {"type": "BlockStored", "block_hashes": [b"k"], "token_ids": [1, 2], "block_size": 2, **fields}
    return bytes(msgpack.packb([1.0, [event]]))


NO_BATCHES = [
    b"",
    b"\xc1",
    msgpack.packb({}),
    msgpack.packb([1.0, [{"type": "BlockStored"}]]),
    stored(token_ids=[1 << 32]),
    stored(token_ids=[1.5]),
    stored(token_ids=["5"]),
    stored(block_size=float("inf")),
    stored(block_size=0),
    stored(block_size=1 << 40),
    stored(block_hashes=[float("inf")]),
    stored(group_idx=1 << 20),
]


@pytest.mark.parametrize("bad", NO_BATCHES)
def test_what_is_no_batch_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedBatch):
        decode(bad)


async def test_an_event_that_cannot_be_read_ends_exactness_and_not_the_subscriber() -> None:
    async with engine() as publisher, following(*publisher.endpoints) as (blocks, subscriber):
        publisher.store()
        await arrives(publisher, blocks)
        assert subscriber.is_exact
        publisher.sent.append(stored(token_ids=[1 << 32] * 2))
        publisher.repeat()
        await eventually(lambda: subscriber.malformed > 0)
        assert not subscriber.is_exact
        publisher.store()
        await arrives(publisher, blocks)
        assert not subscriber.is_exact


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_view_is_exact_again_once_nothing_is_held(keeps: bool) -> None:
    async with engine() as publisher, following(*publisher.endpoints) as (blocks, subscriber):
        blocks.keeps = keeps
        publisher.store()
        await arrives(publisher, blocks)
        publisher.sent.append(stored(token_ids=[1 << 32] * 2))
        publisher.repeat()
        await eventually(lambda: subscriber.malformed > 0)
        before = subscriber.batches
        publisher.sent.append(encode([AllBlocksCleared()], 1.0, 0))
        publisher.repeat()
        await eventually(lambda: subscriber.batches > before)
        assert subscriber.is_exact is not keeps


@pytest.mark.parametrize(
    "answer", [[], [b"kv-events", frame_of(0), stored(block_size=float("inf"))], [b"kv-events", b"12", b""]]
)
async def test_a_replay_that_cannot_be_read_ends_no_subscriber(answer: list[bytes]) -> None:
    """Also the first one, before any event."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.PUB) as socket:
        router.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.LINGER, 0)
        ports = [each.bind_to_random_port("tcp://127.0.0.1") for each in (socket, router)]
        async with following(*(f"tcp://127.0.0.1:{port}" for port in ports)) as (blocks, subscriber):
            client, *_ = await router.recv_multipart()
            await router.send_multipart([client, b"", *answer])
            await eventually(lambda: subscriber.malformed == 1)

            async def told() -> bool:
                await socket.send_multipart([b"kv-events", frame_of(1), stored()])
                return b"k" in blocks.held

            await eventually(told)
            assert not subscriber.is_exact
