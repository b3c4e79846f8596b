"""Where the node's stores that have a name are found: a folder of this user, with a lock, an address and a log for each.

The lock is held by the store's process while it lives, so an address is believed only while somebody serves it.
"""

import os
import tempfile
from pathlib import Path

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.store.arena.region_lock import is_locked, try_lock

_LOCKED = 1  # bytes of the file


class StoreFiles:
    """The files of one store."""

    def __init__(self, name: str) -> None:
        """`name` is the store's, fit for a file.

        Raises:
            StartupError: the folder cannot be made, or belongs to somebody else.
        """
        folder = Path(tempfile.gettempdir()) / f"pbkv-stores-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
        except OSError as error:
            raise StartupError(f"{folder} cannot be used: {error.strerror}") from error
        # Whoever writes there could have us read blocks of their making.
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022 or not folder.is_dir():
            raise StartupError(f"{folder} must be a folder that only this user can write to")
        self.log = folder / f"{name}.log"
        self._address = folder / f"{name}.address"
        self._lock = folder / f"{name}.lock"

    def take(self) -> int | None:
        """Locks the name for this process until the returned file is closed; None if another process has it."""
        file = self._open()
        if not try_lock(file, 0, _LOCKED):
            os.close(file)
            return None
        self._address.unlink(missing_ok=True)
        return file

    def write_address(self, address: str) -> None:
        """Tells where the store serves. Only the process that has the lock may call it."""
        draft = self._address.with_suffix(".draft")
        draft.write_text(address)
        draft.rename(self._address)

    def address(self) -> str | None:
        """Where the store serves, host:port; empty while it is starting; None if none runs."""
        file = self._open()
        try:
            if not is_locked(file, 0, _LOCKED):
                return None
        finally:
            os.close(file)
        try:
            return self._address.read_text()
        except FileNotFoundError:
            return ""

    def _open(self) -> int:
        return os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
