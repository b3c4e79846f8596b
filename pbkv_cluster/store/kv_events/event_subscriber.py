"""Follows the KV events of one engine, so that the map of blocks knows what it holds."""

import asyncio
import logging
from collections.abc import Iterator

import zmq
import zmq.asyncio

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.locations.residency import Residency, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_map import BlockMap, WorkerKey
from pbkv_cluster.store.kv_events.messages import (
    END,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    MalformedBatch,
    decode,
    frame_of,
    number_of,
)

log = logging.getLogger(__name__)

_TIERS = {
    "GPU": Tier.GPU,
    "CPU": Tier.HOST,
    "CPU_PINNED": Tier.HOST,
    "STORAGE": Tier.DISK,
    "DISK": Tier.DISK,
    "EXTERNAL": Tier.DISK,
}
_REPLAY_S = 5.0  # for an answer
_BACK_OFF_S = 30.0  # after a replay that has failed


class KvEventSubscriber:
    """Enters the blocks of one publisher in the map, as those of a worker without slots: others cannot read them by it.

    | number of a batch | then |
    |---|---|
    | the next | its events are entered |
    | a later one | those between are asked for again; if they cannot be had, `is_exact` is false from then on |
    | a lower one than seen | the engine has restarted: all its blocks are forgotten |
    """

    def __init__(
        self,
        endpoint: str,
        blocks: BlockMap,
        worker: WorkerKey,
        node: str,
        clock: Clock,
        *,
        replay_endpoint: str = "",
        topic: str = "",
    ) -> None:
        """Args:
        endpoint: of the publisher.
        blocks: takes its blocks.
        worker: whose they are.
        node: id of its node.
        clock: for the time between two replays.
        replay_endpoint: where to ask for what was missed; empty: nowhere.
        topic: that messages must begin with.
        """
        self.is_exact = True  # no event was missed since the engine's start, or since it was last empty
        self.gaps = 0
        self.malformed = 0
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._topic = topic.encode()
        self._blocks = blocks
        self._worker = worker
        self._node = node
        self._clock = clock
        self._number: int | None = None  # of the batch that was entered last; None: none was
        self._replay_from = 0.0  # time of the clock

    async def run(self) -> None:
        """Follows the publisher for ever; it may start, end and start again at any time."""
        self._blocks.replace(self._worker, self._node, ())
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.SUBSCRIBE, self._topic)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            while True:
                frames = await socket.recv_multipart()
                try:
                    _, number, payload = frames
                    await self._take(context, number_of(number), decode(payload))
                except ValueError as error:
                    self.malformed += 1
                    log.warning("a KV event of %s cannot be read: %s", self._endpoint, error)

    async def _take(self, context: zmq.asyncio.Context, number: int, events: list[Event]) -> None:
        last = -1 if self._number is None else self._number
        if number < last:
            self._restarted()
            last = -1
        if number > last + 1:
            self.gaps += 1
            if not await self._repair(context, last + 1, number):
                self.is_exact = False
        if self._number is None or number > self._number:
            self._enter(number, events)

    def _restarted(self) -> None:
        log.warning("the engine at %s has restarted: its blocks are forgotten", self._endpoint)
        self._blocks.replace(self._worker, self._node, ())
        self._number, self.is_exact = None, True

    async def _repair(self, context: zmq.asyncio.Context, start: int, stop: int) -> bool:
        """Enters the batches from one number to another; False if not all of them can be had."""
        now = self._clock.now()
        if not self._replay_endpoint or now < self._replay_from:
            return False
        try:
            async with asyncio.timeout(_REPLAY_S):
                return await self._replay(context, start, stop)
        except (TimeoutError, zmq.ZMQError, MalformedBatch) as error:
            self._replay_from = now + _BACK_OFF_S
            log.warning("%s does not send again what was missed: %r", self._replay_endpoint, error)
            return False

    async def _replay(self, context: zmq.asyncio.Context, start: int, stop: int) -> bool:
        following = start
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            await socket.send_multipart([b"", frame_of(start)])
            while True:
                *_, number_frame, payload = await socket.recv_multipart()
                number = number_of(number_frame)
                if number == END:
                    return following >= stop
                if number == following < stop:  # what comes after is on its way here
                    self._enter(number, decode(payload))
                    following += 1

    def _enter(self, number: int, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self._blocks.replace(self._worker, self._node, ())
            else:
                self._blocks.change(self._worker, self._changes(event))
        self._number = number

    def _changes(self, event: BlockStored | BlockRemoved) -> Iterator[tuple[bytes, int]]:
        held = self._blocks.blocks(self._worker)
        tier = _TIERS.get(event.medium.upper())
        if tier is None:
            return
        for key in event.keys:
            tiers = unpack(held.get(key, 0)).tiers
            yield key, Residency(tiers | {tier} if isinstance(event, BlockStored) else tiers - {tier}).pack()
