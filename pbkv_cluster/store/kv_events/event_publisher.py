"""Publishes the changes of a worker's cache as KV events, and sends again what a subscriber has missed."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import zmq

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import BLOCK_TOKENS, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.kv_events.messages import (
    END,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    MalformedBatch,
    encode,
    frame_of,
    number_of,
)

log = logging.getLogger(__name__)

_MEDIA = {Tier.GPU: "GPU", Tier.HOST: "CPU", Tier.DISK: "STORAGE"}
_INTERVAL_S = 0.02  # between two batches
_PENDING_MAX = 200_000  # changes that wait for the next batch
_SENDING_MAX = 100_000  # messages that wait for a slow subscriber; further ones are lost to it


class KvEventPublisher:
    """Changes are recorded on the engine's thread; a thread of its own sends them."""

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str = "",
        topic: str = "kv-events",
        buffer_bytes: int = 64 << 20,
        rank: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        endpoint: that subscribers connect to, e.g. tcp://127.0.0.1:5557.
        replay_endpoint: where they ask for what they have missed; empty: nowhere.
        topic: of all messages.
        buffer_bytes: of the latest batches, which can be sent again.
        rank: of this publisher.
        wall: seconds since the epoch.

        Raises:
            StartupError: an endpoint cannot be bound.
        """
        self.number = -1  # of the latest batch
        self._topic = topic.encode()
        self._buffer_bytes = buffer_bytes
        self._rank = rank
        self._wall = wall
        self._lock = threading.Lock()
        self._pending: list[tuple[BlockLabel, Residency]] = []
        self._overflowed = False
        self._tiers: dict[bytes, frozenset[Tier]] = {}  # in which subscribers believe each block to lie
        self._sent: deque[tuple[int, bytes]] = deque()
        self._sent_bytes = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._publish = self._bound(zmq.PUB, endpoint, "kv_events.endpoint")
            self._replay = self._bound(zmq.ROUTER, replay_endpoint, "kv_events.replay_endpoint") if replay_endpoint else None
        except StartupError:
            self._context.destroy(linger=0)
            raise
        self.endpoint = self._publish.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = self._replay.getsockopt_string(zmq.LAST_ENDPOINT) if self._replay else ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    def record(self, label: BlockLabel, residency: Residency) -> None:
        """A block lies elsewhere now. Thread-safe."""
        with self._lock:
            if len(self._pending) >= _PENDING_MAX:
                self._pending.clear()
                self._overflowed = True
            self._pending.append((label, residency))

    def stop(self) -> None:
        """Sends what is left, and closes the sockets."""
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _bound(self, kind: int, endpoint: str, field: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, _SENDING_MAX)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise StartupError(f"{field}: {endpoint} cannot be bound: {error}") from error
        return socket

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._replay is None:
                self._stopping.wait(_INTERVAL_S)
            elif self._replay.poll(round(1000 * _INTERVAL_S)):
                self._answer(self._replay)
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            overflowed, self._overflowed = self._overflowed, False
        events: list[Event] = []
        if overflowed:
            log.warning("changes of the cache came faster than they could be published: subscribers begin anew")
            self._tiers.clear()
            events.append(AllBlocksCleared())
        events += self._events(pending)
        if not events:
            return
        self.number += 1
        payload = encode(events, self._wall(), self._rank)
        self._publish.send_multipart([self._topic, frame_of(self.number), payload])
        self._sent.append((self.number, payload))
        self._sent_bytes += len(payload)
        while self._sent_bytes > self._buffer_bytes:
            self._sent_bytes -= len(self._sent.popleft()[1])

    def _events(self, changes: Sequence[tuple[BlockLabel, Residency]]) -> Iterator[Event]:
        single = [event for label, residency in changes for event in self._moves(label, residency)]
        for (stored, tier), run in groupby(single, key=lambda each: each[:2]):
            labels = [label for *_, label in run]
            if stored:
                yield from _stored(labels, _MEDIA[tier])
            else:
                yield BlockRemoved([label.key for label in labels], _MEDIA[tier])

    def _moves(self, label: BlockLabel, residency: Residency) -> Iterator[tuple[bool, Tier, BlockLabel]]:
        """Whether the block has entered or left a tier, and which."""
        before, now = self._tiers.get(label.key, frozenset()), residency.tiers & _MEDIA.keys()
        if residency.slot < 0:  # beyond the GPU it lies where it did before, or is on its way there
            now &= before | {Tier.GPU}
        if now:
            self._tiers[label.key] = frozenset(now)
        else:
            self._tiers.pop(label.key, None)
        for tier in _MEDIA:
            if (tier in now) != (tier in before):
                yield tier in now, tier, label

    def _answer(self, replay: "zmq.Socket[bytes]") -> None:
        """Sends the batches from a number on to who has asked for them."""
        client, *_, asked = replay.recv_multipart()
        try:
            start = number_of(asked)
        except MalformedBatch as error:
            log.warning("a request for a replay is not answered: %s", error)
            return
        for number, payload in self._sent:
            if number >= start:
                replay.send_multipart([client, b"", self._topic, frame_of(number), payload])
        replay.send_multipart([client, b"", self._topic, frame_of(END), b""])


def _stored(labels: Sequence[BlockLabel], medium: str) -> Iterator[BlockStored]:
    """One event for each run of blocks that follow each other."""
    start = 0
    for at in range(1, len(labels) + 1):
        if at == len(labels) or labels[at].parent != labels[at - 1].key:
            run = labels[start:at]
            first = run[0]
            parent = None if first.parent == first.namespace else first.parent
            tokens = unpack(b"".join(label.tokens for label in run))
            yield BlockStored([label.key for label in run], parent, tokens, BLOCK_TOKENS, medium)
            start = at
