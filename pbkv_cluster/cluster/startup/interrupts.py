"""Signals that end a cluster: SIGTERM is treated like Ctrl-C, and nothing interrupts the release of resources."""

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Does at SIGTERM what happens at SIGINT: by default, KeyboardInterrupt is raised. Does nothing outside the main thread.

    Only the main thread may set handlers, and the owner of another thread decides about signals.
    """

    def __init__(self) -> None:
        self.arrived = threading.Event()  # there was one, even if its KeyboardInterrupt got lost
        self._before: dict[signal.Signals, Any] = {}

    def catch(self) -> None:
        """Sets the handler. May be called again, when something else has set another."""
        self._set(signal.SIGTERM, self._interrupt)

    def ignore(self) -> None:
        """Ignores SIGINT and SIGTERM until `restore`."""
        for number in _SIGNALS:
            self._set(number, lambda number, frame: None)

    def restore(self) -> None:
        """Sets the handlers that there were before. May be called again."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()

    def _set(self, number: signal.Signals, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(number, handler)
            self._before.setdefault(number, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.arrived.set()
        at_ctrl_c = signal.getsignal(signal.SIGINT)
        if callable(at_ctrl_c):  # in `asyncio.run`, one that cancels the main task
            at_ctrl_c(signal.SIGINT, frame)
        else:  # Ctrl-C is ignored, as in the background of a shell without job control
            raise KeyboardInterrupt
