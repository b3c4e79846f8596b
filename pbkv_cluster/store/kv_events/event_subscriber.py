"""Follows the KV events of one engine: a view of its blocks that is never taken for more exact than it is."""

import asyncio
import logging
from typing import NamedTuple

import zmq
import zmq.asyncio
from xxhash import xxh3_64_intdigest

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.store.kv_events.engine_blocks import BlockEvents
from pbkv_cluster.store.kv_events.messages import (
    END,
    AllBlocksCleared,
    BlockStored,
    Event,
    MalformedBatch,
    decode,
    frame_of,
    number_of,
)

log = logging.getLogger(__name__)

_REPLAY_S = 5.0  # for an answer
_BACK_OFF_S = 30.0  # after a replay that has failed
_ALL = 1 << 62  # above every number of a batch


class _Batch(NamedTuple):
    """The batch that was entered last. Engines date batches, so that no two have the same digest."""

    number: int
    digest: int


class KvEventSubscriber:
    """Enters the blocks of one publisher.

    | number of a batch | then |
    |---|---|
    | the next | its events are entered |
    | a later one | those between are asked for again, and the last one too; if some are lost, `is_exact` is false from then |
    | the last one's, with the same content | it is the same batch |
    | that or a lower one | the engine has restarted |

    It has also restarted if the last batch, asked for again, is another one now. Then all its blocks are forgotten, and what
    its new life has told so far is asked for.
    """

    def __init__(self, endpoint: str, blocks: BlockEvents, clock: Clock, *, replay_endpoint: str = "", topic: str = "") -> None:
        """Args:
        endpoint: of the publisher.
        blocks: takes the events.
        clock: for the time between two replays.
        replay_endpoint: where to ask for what was missed; empty: nowhere.
        topic: that messages must begin with.
        """
        self.is_exact = False  # every event was heard since the engine's start, or since it was last empty
        self.batches = 0
        self.gaps = 0
        self.restarts = 0
        self.malformed = 0
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._topic = topic.encode()
        self._blocks = blocks
        self._clock = clock
        self._last: _Batch | None = None
        self._doubted = False
        self._replay_from = 0.0  # time of the clock

    def doubt(self) -> None:
        """The engine was away, and may have restarted: its next batch is not taken for the next without proof."""
        self._doubted = self._last is not None

    async def run(self) -> None:
        """Follows the publisher for ever; it may start, end and start again at any time."""
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.SUBSCRIBE, self._topic)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            await self._repair(context, _ALL)  # what the engine has told before
            while True:
                frames = await socket.recv_multipart()
                try:
                    if len(frames) != 3:
                        raise MalformedBatch(f"a message has three frames, got {len(frames)}")
                    _, number, payload = frames
                    await self._take(context, number_of(number), payload, decode(payload))
                except MalformedBatch as error:
                    self._reject(self._endpoint, error)

    async def _take(self, context: zmq.asyncio.Context, number: int, payload: bytes, events: list[Event]) -> None:
        last = self._last
        if last is not None and number <= last.number:
            if number == last.number and _digest(payload) == last.digest:
                return
            self._restarted()
        elif self._doubted:
            await self._repair(context, number)
            if self._doubted:  # without proof it is taken for another life: then too little is known, but nothing false
                self._restarted()
        if number > self._following:
            self.gaps += 1
            await self._repair(context, number)
        self._enter(number, payload, events)

    def _reject(self, endpoint: str, error: MalformedBatch) -> None:
        """Nobody knows what the events were that cannot be read, and so what the engine holds."""
        self.malformed += 1
        self.is_exact = False
        log.warning("a KV event of %s cannot be read: %s", endpoint, error)

    @property
    def _following(self) -> int:
        """Number of the batch that comes next."""
        return 0 if self._last is None else self._last.number + 1

    def _restarted(self) -> None:
        log.warning("the engine at %s has restarted: its blocks are forgotten", self._endpoint)
        self.restarts += 1
        self._blocks.clear()
        self._last, self.is_exact, self._doubted = None, False, False

    async def _repair(self, context: zmq.asyncio.Context, stop: int) -> None:
        """Enters what can be had of the batches before one."""
        now = self._clock.now()
        if not self._replay_endpoint or now < self._replay_from:
            return
        try:
            async with asyncio.timeout(_REPLAY_S):
                await self._replay(context, stop)
        except MalformedBatch as error:
            self._replay_from = now + _BACK_OFF_S
            self._reject(self._replay_endpoint, error)
        except (TimeoutError, zmq.ZMQError) as error:
            self._replay_from = now + _BACK_OFF_S
            log.warning("%s does not send again what was missed: %r", self._replay_endpoint, error)

    async def _replay(self, context: zmq.asyncio.Context, stop: int) -> None:
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            start = 0 if self._last is None else self._last.number
            while True:
                await socket.send_multipart([b"", frame_of(start)])
                if await self._entered_again(socket, stop):
                    return
                start = 0

    async def _entered_again(self, socket: zmq.asyncio.Socket, stop: int) -> bool:
        """Enters the answers to one request up to a number; false if they are of another life, to be asked for anew."""
        restarted = False
        while True:
            frames = await socket.recv_multipart()
            if len(frames) < 2:
                raise MalformedBatch(f"an answer has a number and a batch, got {len(frames)} frame")
            *_, number_frame, payload = frames
            number = number_of(number_frame)
            if number == END:
                return not restarted
            if self._last is not None and number == self._last.number:
                if _digest(payload) == self._last.digest:
                    self._doubted = False
                else:
                    self._restarted()
                    restarted = True
            elif not restarted and self._following <= number < stop:  # what comes after is on its way here
                self._enter(number, payload, decode(payload))

    def _enter(self, number: int, payload: bytes, events: list[Event]) -> None:
        self.batches += 1
        if number != self._following:
            self.is_exact = False
        elif number == 0:
            self.is_exact = True
        for event in events:
            match event:
                case AllBlocksCleared():
                    if self._blocks.emptied():
                        self.is_exact = True
                case BlockStored():
                    self._blocks.stored(event)
                case _:
                    self._blocks.removed(event)
        self._last = _Batch(number, _digest(payload))


def _digest(payload: bytes) -> int:
    return xxh3_64_intdigest(payload)
