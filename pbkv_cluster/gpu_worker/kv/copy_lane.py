"""A thread that carries out copies one after the other, the urgent ones first."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pbkv_cluster.cache.tiers.transfer import Transfer


class CopyLane:
    """Transfers in one direction. Of those that are urgent, and of those that are not, the earliest is next.

    A transfer makes those that it comes after urgent when it is made, whichever lane they are in. So whatever a lane may have
    to wait for was submitted earlier and is urgent, and two lanes never wait for each other in a circle.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._lock = threading.Lock()
        self._queue: deque[tuple[Transfer, Callable[[], None], Future[None]]] = deque()

    def submit(self, transfer: Transfer, copy: Callable[[], None]) -> Future[None]:
        """Has `copy` carry out a transfer. Returns the future of its end."""
        ended: Future[None] = Future()
        with self._lock:
            self._queue.append((transfer, copy, ended))
        self._thread.submit(self._next)
        return ended

    def close(self) -> None:
        """Ends the thread after the copy that has begun."""
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
