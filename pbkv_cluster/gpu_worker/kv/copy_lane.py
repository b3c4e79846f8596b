"""Threads that carry out copies one after the other, the urgent ones first, and what they have copied."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.core.usage import Tier

Lane: TypeAlias = tuple[Tier, Tier]
"""Source and target."""


class CopyMeter:
    """What has been copied since the start, by lane. Each lane has a thread of its own, which alone writes its sums."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self.blocks = dict.fromkeys(lanes, 0)
        self.seconds = dict.fromkeys(self.blocks, 0.0)
        self._damaged = dict.fromkeys(self.blocks, 0)

    @property
    def damaged_blocks(self) -> int:
        """Blocks whose bytes did not have their checksum when they were to be loaded."""
        return sum(self._damaged.values())

    def add(self, lane: Lane, blocks: int, seconds: float) -> None:
        """Takes in a transfer."""
        self.blocks[lane] += blocks
        self.seconds[lane] += seconds

    def add_damaged(self, lane: Lane) -> None:
        """Takes in a damaged block."""
        self._damaged[lane] += 1


class CopyLane:
    """Transfers in one direction. Of those that are urgent, and of those that are not, the earliest is next.

    One that has to come after others, in whichever lane, is in the queue when these have ended: the lane waits for nothing, and
    what comes from a slow place does not hold up the rest.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._lock = threading.Lock()
        self._is_closed = False
        self._queue: deque[tuple[Transfer, Callable[[], None], Future[None]]] = deque()

    def submit(self, transfer: Transfer, copy: Callable[[], None], after: Collection[Future[None]] = ()) -> Future[None]:
        """Has `copy` carry out a transfer once those `after` which it comes have ended.

        Returns:
            The future of its end, which can be cancelled until it has begun.
        """
        ended: Future[None] = Future()
        left = len(after)

        def one_has_ended(_: Future[None]) -> None:
            nonlocal left
            with self._lock:
                left -= 1
                is_last = not left
            if is_last:
                self._enter(transfer, copy, ended)

        for each in after:
            each.add_done_callback(one_has_ended)
        if not after:
            self._enter(transfer, copy, ended)
        return ended

    def close(self) -> None:
        """Ends the thread after the copy that has begun."""
        with self._lock:
            self._is_closed = True
        self._thread.shutdown(cancel_futures=True)

    def _enter(self, transfer: Transfer, copy: Callable[[], None], ended: Future[None]) -> None:
        with self._lock:
            if not self._is_closed:
                self._queue.append((transfer, copy, ended))
                self._thread.submit(self._next)

    def _next(self) -> None:
        with self._lock:
            at = next((number for number, entry in enumerate(self._queue) if entry[0].urgent), 0)
            _, copy, ended = self._queue[at]
            del self._queue[at]
        if not ended.set_running_or_notify_cancel():
            return
        try:
            copy()
        except BaseException as error:
            ended.set_exception(error)
            raise
        ended.set_result(None)
