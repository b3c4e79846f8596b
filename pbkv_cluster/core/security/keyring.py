"""The API keys that a process accepts."""

import logging
import os
import threading
from pathlib import Path

from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import ConfigError, Unauthenticated
from pbkv_cluster.core.security.caller import OPERATOR, Caller
from pbkv_cluster.core.security.key_file import Callers, digest, read_key_file

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at whether the file has changed


class Keyring:
    """Those of a file, which is read again when it changes, and the cluster key. May be used by several threads.

    A large file takes seconds to parse, so that is done on a thread, and the keys of before count until then.
    A file that has become wrong, or has gone, changes nothing but the log: the keys of before stay.
    """

    def __init__(self, path: Path, cluster_key: str = "", clock: Clock | None = None) -> None:
        """Args:
        path: of the file.
        cluster_key: accepted besides, as an operator's; empty: none.
        clock: measures the time between looks at the file.

        Raises:
            ConfigError: the file cannot be read, or an entry is wrong.
        """
        self._path = path
        self._clock = clock or SystemClock()
        self._own: Callers = {digest(cluster_key): OPERATOR} if cluster_key else {}
        self._version = _version(path)
        self._callers = {**self._own, **read_key_file(path)}
        self._look_at = self._clock.now() + LOOK_S
        self._reading = threading.Lock()  # held by the thread that reads the file

    def caller(self, api_key: str) -> Caller:
        """Whose key it is.

        Raises:
            Unauthenticated: it is empty or nobody's.
        """
        if not api_key:
            raise Unauthenticated("an API key is needed")
        if self._clock.now() >= self._look_at:
            self._look()
        # The key is not compared with others, its digest is looked up: the time that takes says nothing about any key.
        caller = self._callers.get(digest(api_key))
        if caller is None:
            raise Unauthenticated("the API key is not known here")
        return caller

    def _look(self) -> None:
        self._look_at = self._clock.now() + LOOK_S
        if not self._reading.acquire(blocking=False):
            return
        version = _version(self._path)
        if version == self._version:
            self._reading.release()
            return
        self._version = version
        threading.Thread(target=self._read, name="API keys", daemon=True).start()

    def _read(self) -> None:
        try:
            self._callers = {**self._own, **read_key_file(self._path)}
        except ConfigError as error:
            log.error("%s; the keys of before stay", error)
        else:
            log.info("security.credentials: %d API keys are read again", len(self._callers) - len(self._own))
        finally:
            self._reading.release()


def _version(path: Path) -> tuple[int, ...]:
    """What changes when the file does; empty: it cannot be found now."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
