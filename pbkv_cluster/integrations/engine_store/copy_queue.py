"""Threads that copy, and a bound on the bytes that wait for them."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class CopyQueue:
    """Runs copies in order, several at once. What does not fit is refused at once."""

    def __init__(self, name: str, threads: int, max_bytes: int) -> None:
        """Args:
        name: of the threads.
        threads: that copy.
        max_bytes: of all copies that wait or run.
        """
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.pending_bytes = 0

    def submit(self, size: int, copy: Callable[[], T]) -> "Future[T] | None":
        """Queues a copy of `size` bytes; one that is larger than all of the queue is taken while there is no other.

        Returns:
            None if there is no room for it, or the queue has been closed.
        """
        with self._lock:
            if 0 < self.pending_bytes > self._max_bytes - size:
                return None
            self.pending_bytes += size
        try:
            future = self._executor.submit(copy)
        except RuntimeError:  # closed
            self._done(size)
            return None
        future.add_done_callback(lambda _: self._done(size))
        return future

    def close(self) -> None:
        """Waits for the copies that run; those that wait are cancelled."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _done(self, size: int) -> None:
        with self._lock:
            self.pending_bytes -= size


def done(value: T) -> "Future[T]":
    """A future that is done already."""
    future: Future[T] = Future()
    future.set_result(value)
    return future
