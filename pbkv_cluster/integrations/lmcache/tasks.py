"""Tasks as LMCache wants them: submitted with a number for an answer, their results picked up later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Notifier(Protocol):
    """What is used of LMCache's `EventNotifier`."""

    def fileno(self) -> int:
        """A file descriptor that becomes readable with `notify`."""

    def notify(self) -> None:
        """Tells that there is a result."""

    def close(self) -> None:
        """Closes the descriptor."""


class Tasks(Generic[ResultT]):
    """Tasks of one kind, carried out by a thread in order. Safe for threads."""

    def __init__(self, name: str, notifier: Notifier) -> None:
        """Args:
        name: of the thread.
        notifier: told of each result.
        """
        self.notifier = notifier
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._submitted = 0
        self._results: dict[int, ResultT] = {}

    def submit(self, work: Callable[[], ResultT], failed: Callable[[], ResultT]) -> int:
        """Queues a task.

        Args:
            work: carries it out.
            failed: its result if `work` raises.

        Returns:
            Its number.
        """
        with self._lock:
            number = self._submitted
            self._submitted += 1
        self._executor.submit(self._run, number, work, failed)
        return number

    def pop(self, number: int) -> ResultT | None:
        """The result of a task, once; None: it has none yet, or it was taken."""
        with self._lock:
            return self._results.pop(number, None)

    def pop_all(self) -> dict[int, ResultT]:
        """All results that were not taken yet, by the numbers of their tasks."""
        with self._lock:
            results, self._results = self._results, {}
        return results

    def close(self) -> None:
        """Waits for the task that runs; those that wait are dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self.notifier.close()

    def _run(self, number: int, work: Callable[[], ResultT], failed: Callable[[], ResultT]) -> None:
        try:
            result = work()
        except Exception:
            log.exception("a task of LMCache has failed")
            result = failed()
        with self._lock:
            self._results[number] = result
        self.notifier.notify()
