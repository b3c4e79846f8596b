"""The API keys that a process accepts."""

import logging
import os
import threading
import time
import weakref
from pathlib import Path

from pbkv_cluster.core.errors import ConfigError, Unauthenticated
from pbkv_cluster.core.security.caller import OPERATOR, Caller
from pbkv_cluster.core.security.key_file import Callers, digest, read_key_file

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at whether the file has changed


class Keyring:
    """Those of a file, which is read again when it changes, and the cluster key. May be used by several threads.

    A thread looks at the file, whether calls come or not: were it left to the calls, the first after a pause would be judged
    by keys from before it. A large file takes seconds to parse, and the keys of before count until then.
    A file that has become wrong, or has gone, changes nothing but the log: the keys of before stay.
    """

    def __init__(self, path: Path, cluster_key: str = "", look_s: float = LOOK_S) -> None:
        """Args:
        path: of the file.
        cluster_key: accepted besides, as an operator's; empty: none.
        look_s: seconds between two looks at whether the file has changed.

        Raises:
            ConfigError: the file cannot be read, or an entry is wrong.
        """
        self._path = path
        self._own: Callers = {digest(cluster_key): OPERATOR} if cluster_key else {}
        self._version = _version(path)
        self._callers = {**self._own, **read_key_file(path)}
        # The thread ends with the keyring, which it must not keep.
        threading.Thread(target=_follow, args=(weakref.ref(self), look_s), name="API keys", daemon=True).start()

    def caller(self, api_key: str) -> Caller:
        """Whose key it is.

        Raises:
            Unauthenticated: it is empty or nobody's.
        """
        if not api_key:
            raise Unauthenticated("an API key is needed")
        # The key is not compared with others, its digest is looked up: the time that takes says nothing about any key.
        caller = self._callers.get(digest(api_key))
        if caller is None:
            raise Unauthenticated("the API key is not known here")
        return caller

    def look(self) -> None:
        """Reads the file again if it has changed."""
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._callers = {**self._own, **read_key_file(self._path)}
        except ConfigError as error:
            log.error("%s; the keys of before stay", error)
        else:
            log.info("security.credentials: %d API keys are read again", len(self._callers) - len(self._own))


def _follow(followed: weakref.ref[Keyring], look_s: float) -> None:
    while True:
        time.sleep(look_s)
        keyring = followed()
        if keyring is None:
            return
        try:
            keyring.look()
        except Exception:  # whatever it is, a file that is mended later must be read
            log.exception("security.credentials: the keys of before stay")
        del keyring


def _version(path: Path) -> tuple[int, ...]:
    """What changes when the file does; empty: it cannot be found now."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
