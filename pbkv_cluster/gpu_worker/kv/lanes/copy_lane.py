"""A thread that carries out copies one after the other, the urgent ones first."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from pbkv_cluster.cache.tiers.transfer import Transfer


class CopyLane:
    """Transfers in one direction. Of those that are urgent, and of those that are not, the earliest is next.

    A transfer queues when those that it comes after have ended, so that a lane never waits for another: what has to come after
    a fetch, which may take as long as another node does, keeps nothing else waiting.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._lock = threading.Lock()
        self._queue: deque[tuple[Transfer, Callable[[], None], Future[None]]] = deque()
        self._is_closed = False

    def submit(self, transfer: Transfer, copy: Callable[[], None], after: Iterable[Future[None]] = ()) -> Future[None]:
        """Has `copy` carry out a transfer, once others, of this lane or another, have ended. Returns the future of its end."""
        ended: Future[None] = Future()
        awaited = [*after]
        left = len(awaited) + 1

        def one_less(_: Future[None]) -> None:
            nonlocal left
            with self._lock:
                left -= 1
                if not left and not self._is_closed:
                    self._queue.append((transfer, copy, ended))
                    self._thread.submit(self._next)

        for each in awaited:
            each.add_done_callback(one_less)
        one_less(ended)
        return ended

    def close(self) -> None:
        """Ends the thread after the copy that has begun."""
        with self._lock:
            self._is_closed = True
        self._thread.shutdown(cancel_futures=True)

    def _next(self) -> None:
        with self._lock:
            at = next((number for number, entry in enumerate(self._queue) if entry[0].urgent), 0)
            _, copy, ended = self._queue[at]
            del self._queue[at]
        try:
            copy()
        except BaseException as error:
            ended.set_exception(error)
            raise
        ended.set_result(None)
