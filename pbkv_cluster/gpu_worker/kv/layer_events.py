"""The layers of one load as they arrive: told by the thread that copies, waited for by the engine's."""

import threading
from collections.abc import Callable
from typing import Protocol


class LayerEvent(Protocol):
    """Stands for the copy of one layer on the device that it is copied to."""

    def wait(self) -> None:
        """What this thread has the device compute from now on comes after the copy."""
        ...

    def synchronize(self) -> None:
        """Returns when the copy has been made."""
        ...


class LayerEvents:
    """See `LayerArrival`."""

    def __init__(self, layers: int, seconds_left: Callable[[float], float]) -> None:
        """Args:
        layers: of a block.
        seconds_left: until the transfer is done, given the share of its layers that have been told of.
        """
        self._layers = layers
        self._seconds_left = seconds_left
        self._events: list[LayerEvent] = []
        self._ended = False
        self._changed = threading.Condition()

    def arrived(self, event: LayerEvent) -> None:
        """The next layer is there when its event says so."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def end(self) -> None:
        """No more layers come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, layer: int) -> None:
        """See `LayerArrival.wait`."""
        with self._changed:
            self._changed.wait_for(lambda: layer < len(self._events) or self._ended)
            event = self._events[layer] if layer < len(self._events) else None
        if event is not None:
            event.wait()

    def seconds_left(self) -> float:
        """See `LayerArrival.seconds_left`."""
        return self._seconds_left(len(self._events) / self._layers)
