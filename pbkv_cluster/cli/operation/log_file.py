"""The file that a detached cluster writes to instead of a terminal."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.1
_OWNER_ONLY = 0o600


def log_path(cluster: str) -> Path:
    """Where the output of a detached cluster goes: below XDG_STATE_HOME, or `~/.local/state`."""
    home = os.environ.get("XDG_STATE_HOME", "")
    state = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    return state / "pbkv" / f"{cluster}.log"


def new_log(path: Path) -> BinaryIO:
    """Opens an empty log that only its owner can read. The one of the last run is kept beside it, as `.1`.

    Raises:
        OSError: the file or its folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, _OWNER_ONLY), "wb", buffering=0)


def last_lines(path: Path, lines: int, most_bytes: int = 1 << 20) -> tuple[str, int]:
    """The last lines of a file, of its last `most_bytes` at most, and the offset of its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most_bytes))
        text = file.read(most_bytes)
    return b"".join(text.splitlines(keepends=True)[-lines:] if lines else []).decode(errors="replace"), size


def follow(path: Path, offset: int, goes_on: Callable[[], bool]) -> Iterator[str]:
    """What is written to a file from `offset` on, as it comes, until `goes_on` says no and all has been read."""
    with path.open("rb") as file:
        file.seek(offset)
        while True:
            last = not goes_on()  # asked first: what was written before that must not be lost
            if text := file.read():
                yield text.decode(errors="replace")
            elif last:
                return
            else:
                time.sleep(_POLL_S)
