"""Restores what was learnt at the start, and saves it while the predictor runs and when it stops."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.predictor_service.state.file import StateRefused, set_aside

log = logging.getLogger(__name__)


class StateSaver:
    """Runs `save(path)` for each of its files: at intervals, and a last time once it is stopped."""

    def __init__(self, files: Mapping[Path, Callable[[Path], Awaitable[None]]], interval_s: float) -> None:
        """Args:
        files: for each file, what writes it; it may raise OSError, or ValueError for a state that must not be kept.
        interval_s: seconds between two writes.
        """
        self._failures: dict[Path, str] = {}
        self._files = files
        self._interval_s = interval_s
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why files could not be written the last time; empty: all were."""
        return tuple(f"the state {file} cannot be saved: {reason}" for file, reason in self._failures.items())

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
                await self._save(file, save)

    async def _save(self, file: Path, save: Callable[[Path], Awaitable[None]]) -> None:
        try:
            await save(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if self._failures.get(file) != reason:
                log.error("cannot write the predictor's state %s: %s", file, reason)
            self._failures[file] = reason
        else:
            if self._failures.pop(file, None) is not None:
                log.warning("the predictor's state %s is saved again", file)


def restore(path: Path, load: Callable[[Path], None]) -> str:
    """Loads a file of learnt state, if there is one. One that does not fit is set aside, see `set_aside`.

    Args:
        path: of the file.
        load: raises StateRefused if the file does not fit. Any other error counts as that too: the contents of a file must
            not keep the predictor from starting, now and each time that it is started again.

    Returns:
        Why the file was set aside; empty: it was loaded, or there is none.

    Raises:
        StartupError: the file can be neither read nor renamed.
    """
    if not path.exists():
        return ""
    try:
        try:
            load(path)
        except OSError:
            raise
        except Exception as error:  # reported below, with its traceback if it is none of ours
            known = isinstance(error, StateRefused)
            problem = str(error) if known else f"{path} does not fit: {type(error).__name__}: {error}"
            aside = set_aside(path)
            log.error("learning starts over: %s (set aside as %s)", problem, aside.name, exc_info=None if known else error)
            return f"learning has started over: {problem} (set aside as {aside.name})"
        return ""
    except OSError as error:
        raise StartupError(f"cannot use the predictor's state {path}: {error.strerror}") from error
