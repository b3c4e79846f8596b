"""What Ray would print on this process's standard output, logged in one line instead.

Ray tells of each process that ended in a paragraph of advice, also of those that we end ourselves, and no setting turns it off,
so Ray's function that prints is replaced. Ray is imported late: `ray_session` says why.
"""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class RayMessages:
    """Takes the place of Ray's printing in this process, from `capture` to `release`."""

    def __init__(self) -> None:
        self._printing: Callable[..., None] | None = None  # Ray's own

    def capture(self) -> None:
        from ray._private import worker

        self._printing = worker.print_to_stdstream
        worker.print_to_stdstream = _log

    def release(self) -> None:
        """Lets Ray print again. May be called again."""
        if self._printing is not None:
            from ray._private import worker

            worker.print_to_stdstream = self._printing
            self._printing = None


def _log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    log.info("Ray says: %s", "\n".join(map(str, data.get("lines", ()))))
