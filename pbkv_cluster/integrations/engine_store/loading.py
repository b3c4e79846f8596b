"""Reads blocks from wherever they are: the own region, then siblings', then other nodes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Protocol

import numpy as np

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.integrations.engine_store.copy_queue import CopyQueue
from pbkv_cluster.integrations.engine_store.other_nodes import OtherNodes
from pbkv_cluster.integrations.engine_store.outcomes import Outcomes
from pbkv_cluster.integrations.engine_store.own_region import OwnRegion
from pbkv_cluster.integrations.engine_store.siblings import Siblings
from pbkv_cluster.store.arena.slots import Bytes, ReadResult

Deliver = Callable[[int, Bytes], object]


_PIECE_BYTES = 32 << 20  # that one thread copies before another load has its turn


class Places(Protocol):
    """Where blocks may be at the moment."""

    block_bytes: int
    region: OwnRegion | None
    siblings: Siblings | None
    other_nodes: OtherNodes | None


class Loader:
    """Loads on threads, in pieces, so that a large load uses several of them and does not keep small ones waiting."""

    def __init__(self, places: Places, queue: CopyQueue, outcomes: Outcomes) -> None:
        self._places = places
        self._queue = queue
        self._outcomes = outcomes

    def load(self, labels: Sequence[BlockLabel], deliver: Deliver) -> "Future[list[bool]]":
        """Delivers blocks; see `EngineStore.load`."""
        results = [False] * len(labels)
        future: Future[list[bool]] = Future()
        step = max(1, _PIECE_BYTES // self._places.block_bytes)
        pieces = [range(start, min(start + step, len(labels))) for start in range(0, len(labels), step)]
        # One more than the pieces, so that the future is not done before all of them have been queued.
        left, lock = [len(pieces) + 1], Lock()

        def done(_: object = None) -> None:
            with lock:
                left[0] -= 1
                is_last = not left[0]
            if is_last:
                future.set_result(results)

        for piece in pieces:
            copy = self._queue.submit(len(piece) * self._places.block_bytes, self._piece(labels, piece, deliver, results))
            if copy is None:
                self._outcomes.add("load_refused", len(piece))
                done()
            else:
                copy.add_done_callback(done)
        done()
        return future

    def close(self) -> None:
        """Ends the threads; what has not been loaded by then fails."""
        self._queue.close()

    def _piece(self, labels: Sequence[BlockLabel], piece: range, deliver: Deliver, results: list[bool]) -> Callable[[], None]:
        def run() -> None:
            with self._outcomes.contained("load_failed", len(piece)):
                _Piece(self._places, deliver, results, self._outcomes).load([(number, labels[number]) for number in piece])

        return run


class _Piece:
    """Some blocks of a load, on one thread."""

    def __init__(self, places: Places, deliver: Deliver, results: list[bool], outcomes: Outcomes) -> None:
        self._region, self._siblings, self._other_nodes = places.region, places.siblings, places.other_nodes
        self._block_bytes = places.block_bytes
        self._deliver = deliver
        self._results = results
        self._outcomes = outcomes

    def load(self, wanted: Sequence[tuple[int, BlockLabel]]) -> None:
        staging = np.empty(self._block_bytes, np.uint8)
        far = []
        for number, label in wanted:
            result = self._load_near(number, label.key, staging)
            if result is ReadResult.READ:
                continue
            if self._other_nodes is not None and self._other_nodes.find(label.key):
                far.append((number, label))
            else:
                self._outcomes.add(f"load_{result.value}", 1)
        if far and self._other_nodes is not None:
            with self._outcomes.contained("load_failed", len(far)):
                self._load_far(self._other_nodes, far)

    def _load_near(self, number: int, key: bytes, staging: Bytes) -> ReadResult:
        result = ReadResult.ABSENT
        if self._region is not None:
            result = self._region.read(key, lambda payload: self._hand_over(number, payload, "own"))
        if result is ReadResult.READ or self._siblings is None:
            return result
        found = self._siblings.read(key, staging)
        if found is ReadResult.READ:
            self._hand_over(number, staging, "sibling")
        return result if found is ReadResult.ABSENT else found

    def _load_far(self, other_nodes: OtherNodes, far: Sequence[tuple[int, BlockLabel]]) -> None:
        """What comes from another node is kept in the own region, so that it is near the next time."""
        memory = np.empty((len(far), self._block_bytes), np.uint8)
        found = other_nodes.read([label.key for _, label in far], list(memory))
        for (number, label), payload, result in zip(far, memory, found, strict=True):
            if result is not ReadResult.READ:
                self._outcomes.add("load_unavailable" if result is None else f"load_{result.value}")
                continue
            self._hand_over(number, payload, "remote")
            for write in self._region.begin([label]) if self._region is not None else ():
                write.payload[:] = payload
                write.region.commit([write])

    def _hand_over(self, number: int, payload: Bytes, source: str) -> None:
        with self._outcomes.contained("load_failed"):
            self._deliver(number, payload)
            self._results[number] = True
            self._outcomes.add(f"loaded_{source}", 1)
