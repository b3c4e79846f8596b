"""What Ray would print on this process's standard output: kept as causes of ended processes, and logged in one line.

Ray tells of each process that ended in a paragraph of advice, also of those that we end ourselves. Nothing else says why, and
no setting turns it off, so Ray's function that prints is replaced. Ray is imported late: `ray_session` says why.
"""

import logging
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray

log = logging.getLogger(__name__)

_PROCESS = re.compile(r"Worker PID: (\d+)")
_STATUS = re.compile(r"exit code (\d+)")
_KEPT = 256

# Ray knows no more. Its own memory monitor, which is off where we start Ray, does not tell of what it kills either.
KILLED = (
    "its process was killed by a signal, for example for lack of memory, by the kernel or by the memory monitor of a joined Ray"
)


class RayMessages:
    """Causes of ended processes, by process id."""

    def __init__(self) -> None:
        self._causes: dict[int, str] = {}
        self._arrived = threading.Condition()
        self._printing: Callable[..., None] | None = None  # Ray's own

    def capture(self) -> None:
        """Takes the place of Ray's printing in this process, until `release`."""
        from ray._private import worker

        self._printing = worker.print_to_stdstream
        worker.print_to_stdstream = self._receive

    def release(self) -> None:
        """Lets Ray print again. May be called again."""
        if self._printing is not None:
            from ray._private import worker

            worker.print_to_stdstream = self._printing
            self._printing = None

    def cause(self, pid: int, timeout_s: float) -> str:
        """Why a process has ended. Waits at most `timeout_s` seconds for Ray to say so."""
        with self._arrived:
            self._arrived.wait_for(lambda: pid in self._causes, timeout_s)
            return self._causes.get(pid, KILLED)

    def _receive(self, data: dict[str, Any], ignore_prefix: bool = False) -> None:
        text = "\n".join(map(str, data.get("lines", ())))
        log.info("Ray says: %s", text)
        with self._arrived:
            for pid in map(int, _PROCESS.findall(text)):
                self._causes[pid] = _cause(text)
            while len(self._causes) > _KEPT:
                del self._causes[next(iter(self._causes))]
            self._arrived.notify_all()


def in_words(error: "ray.exceptions.RayError") -> str:
    """The error of a call to a member."""
    import ray

    # A call that is lost with its process gets an error of the connection, which tells nobody anything.
    return KILLED if isinstance(error, ray.exceptions.ActorUnavailableError) else str(error)


def _cause(text: str) -> str:
    if status := _STATUS.search(text):
        return f"its process exited with status {status[1]}"
    return KILLED
