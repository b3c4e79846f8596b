"""What became of blocks, and of errors that must not reach the engine."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pbkv_cluster.core.errors import InvalidArgument, PbkvError

log = logging.getLogger(__name__)

BAD_ARGUMENT = "bad_argument"


class StoreChange(NamedTuple):
    """A block that has come to this engine's region, or has gone from it."""

    namespace: bytes  # digest
    key: bytes  # the engine's
    is_stored: bool


class Outcomes:
    """Counts blocks by outcome. The first error of each outcome is logged as a warning, all others for debugging only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def add(self, outcome: str, blocks: int = 1) -> None:
        """Counts blocks. Any thread may."""
        if blocks:
            with self._lock:
                self.counts[outcome] += blocks

    @contextmanager
    def contained(self, outcome: str, blocks: int = 1) -> Iterator[None]:
        """Whatever is raised inside ends here, counted and logged; an argument of the caller's that is wrong, as that."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # a cache that fails is a miss, and never the engine's failure
            self.failed(BAD_ARGUMENT if isinstance(error, InvalidArgument) else outcome, blocks, error)

    def failed(self, outcome: str, blocks: int, error: Exception) -> None:
        """Counts and logs an error."""
        self.add(outcome, blocks)
        if outcome in self._told:
            log.debug("%s: %s", outcome, error)
            return
        self._told.add(outcome)
        is_known = isinstance(error, PbkvError)
        log.warning("%s: %s; from now on, this is only counted", outcome, error, exc_info=None if is_known else error)
