"""Restores what was learnt at the start, and saves it while the predictor runs and when it stops."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.predictor_service.state.file import StateRefused

log = logging.getLogger(__name__)


class StateSaver:
    """Runs `save(path)` for each of its files: at intervals, and a last time once it is stopped."""

    def __init__(self, files: Mapping[Path, Callable[[Path], Awaitable[None]]], interval_s: float) -> None:
        """Args:
        files: for each file, what writes it; it may raise OSError.
        interval_s: seconds between two writes.
        """
        self._files = files
        self._interval_s = interval_s
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts saving in the background."""
        self._task = asyncio.create_task(self._run(), name="saving of the state")

    async def stop(self) -> None:
        """Saves a last time, if it was started."""
        # Told to stop rather than cancelled: a write in its thread cannot be cancelled, and would race with the last one.
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        last = False
        while not last:
            last = await wait_for(self._stopping, self._interval_s)
            for file, save in self._files.items():
                try:
                    await save(file)
                except OSError as error:
                    log.error("cannot write the predictor's state %s: %s", file, error.strerror)


def restore(path: Path, load: Callable[[Path], None]) -> None:
    """Loads a file of learnt state, if there is one. One that does not fit is renamed to end in `.refused`.

    Args:
        path: of the file.
        load: raises StateRefused if the file does not fit.

    Raises:
        StartupError: the file can be neither read nor renamed.
    """
    if not path.exists():
        return
    aside = path.with_name(f"{path.name}.refused")
    try:
        try:
            load(path)
        except StateRefused as error:
            path.replace(aside)
            log.error("learning starts over: %s (set aside as %s)", error, aside.name)
    except OSError as error:
        raise StartupError(f"cannot use the predictor's state {path}: {error.strerror}") from error
