"""Takes the memory of a region from the machine, piece by piece and in the background."""

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable

import numpy as np

from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.store.arena.machine import LIBC

log = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, of Linux 5.14: takes the pages, or returns an error instead of killing the process
_HUGE = 14  # MADV_HUGEPAGE
_NICE = 10  # of the thread, at least, so that touching gives way to computing


class PageTouch:
    """Touches the pages of a mapping. What is needed sooner is touched at once, by whoever needs it (`ensure`).

    Without this, a page is taken when it is first written to; then a lack of memory would end the process in the middle of a
    copy, and the first copies would be slow.
    """

    def __init__(
        self, memory: memoryview, huge_pages: bool = False, pin: Callable[[int, int], None] = lambda address, size: None
    ) -> None:
        """Args:
        memory: writable; starts with a page.
        huge_pages: asks for transparent huge pages.
        pin: called with the address and the size of each piece that has been touched.
        """
        self._memory = memory  # keeps the mapping while the thread runs
        self._address = np.frombuffer(memory, np.uint8).ctypes.data
        self.size = len(memory)
        self._huge_pages = huge_pages
        self._pin = pin
        # Pieces meet at addresses that are multiples of their size: who copies must know, since each is pinned on its own.
        self._lead = self._address % PIECE_BYTES  # bytes of the first piece that lie before the mapping
        self._pieces = bytearray(-(-(self._lead + self.size) // PIECE_BYTES))  # 1: touched
        self._touching = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page-touch", daemon=True)
        self.problem = ""  # why some of it cannot be touched

    @property
    def ready_bytes(self) -> int:
        """Bytes that have been touched and pinned, in pieces from anywhere in the mapping."""
        touched = (self._span(piece) for piece, is_touched in enumerate(self._pieces) if is_touched)
        return sum(stop - start for start, stop in touched)

    def start(self) -> None:
        """Touches all of the mapping, from its beginning, on a thread."""
        if self._huge_pages:
            LIBC.madvise(ctypes.c_void_p(self._address), ctypes.c_size_t(self.size), _HUGE)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; the mapping may be closed then."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def ensure(self, start: int, stop: int) -> None:
        """Touches the pieces that contain the bytes from `start` to `stop`, if they have not been.

        Raises:
            ResourceExhausted: the machine has no memory for them.
        """
        for piece in range((self._lead + start) // PIECE_BYTES, -(-(self._lead + stop) // PIECE_BYTES)):
            if not self._pieces[piece]:
                try:
                    self._touch(piece)
                except ResourceExhausted as error:
                    self._report(error)
                    raise

    def _run(self) -> None:
        thread = threading.get_native_id()
        # A thread that gives way more than that already may not be made to give way less.
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))
        try:
            for piece in range(len(self._pieces)):
                if self._stopping.is_set():
                    return
                if not self._pieces[piece]:
                    self._touch(piece)
        except ResourceExhausted as error:
            self._report(error)

    def _report(self, error: ResourceExhausted) -> None:
        is_first = not self.problem
        self.problem = f"{error}; {self.ready_bytes} bytes are in use"
        if is_first:
            log.warning("%s", self.problem)

    def _span(self, piece: int) -> tuple[int, int]:
        """Where in the mapping a piece begins and ends."""
        start = piece * PIECE_BYTES - self._lead
        return max(0, start), min(self.size, start + PIECE_BYTES)

    def _touch(self, piece: int) -> None:
        start, stop = self._span(piece)
        size = stop - start
        with self._touching:
            if self._pieces[piece]:
                return
            if LIBC.madvise(ctypes.c_void_p(self._address + start), ctypes.c_size_t(size), _POPULATE_WRITE):
                number = ctypes.get_errno()
                # EINVAL: an older kernel, which takes the pages when they are written to.
                if number != errno.EINVAL:
                    raise ResourceExhausted(f"the machine has no memory for all of the arena's region: {os.strerror(number)}")
            self._pin(self._address + start, size)
            self._pieces[piece] = 1
