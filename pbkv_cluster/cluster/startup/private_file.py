"""Files that only their owner may read."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_OWNER_ONLY = 0o600


def write_private(path: Path, text: str) -> Path:
    """Writes a new file that nobody but its owner can read, not even for a moment. Returns its path."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "w") as file:
        file.write(text)
    return path


def make_private(path: Path) -> None:
    """Takes everybody else's rights to a file of ours away, if there is such a file."""
    try:
        facts = path.stat()
        if facts.st_uid == os.getuid() and facts.st_mode & 0o077:
            path.chmod(_OWNER_ONLY)
            log.warning("%s could be read by others; now only its owner can", path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s may be readable by others: %s", path, error.strerror)
