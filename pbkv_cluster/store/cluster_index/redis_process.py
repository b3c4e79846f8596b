"""A redis-server process that is started again whenever it dies, for as long as this process lives."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_LAUNCHER = Path(__file__).with_name("redis_launcher.py")
_STOP_S = 5.0
_SHORT_LIFE_S = 1.0
_SHORT_LIVES_MAX = 5  # in a row: then the server cannot run
_RESTART_PAUSE_S = 0.2  # after a short life
_OUTPUT_MAX = 4096  # bytes of a server's output that a message quotes


class RedisProcess:
    """Keeps a redis-server running.

    A thread starts the server and waits for its end. The kernel kills the server when that thread ends, which is when this
    process does: nothing can be lost between the two.
    """

    def __init__(self, binary: str, config: str) -> None:
        """Args:
        binary: path of redis-server.
        config: text of its configuration file; given on standard input, which other users of the machine cannot read.
        """
        self._command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), binary]
        self._config = config.encode()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this object lives
        self._lock = threading.Lock()  # held while a server is started, so that none is started after `stop`
        self._server: subprocess.Popen[bytes] | None = None
        self._answered = False
        self._stopping = False
        self._ended = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._keep_running, name="redis-server", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str:
        """Why the server has ended for good; empty while it runs or is started again."""
        return self._failure

    def answered(self) -> None:
        """Says that the server runs with this configuration. One that has never answered is not started again."""
        self._answered = True

    def wait_ended(self, timeout_s: float) -> bool:
        """Waits until the server has ended for good. Returns whether it has."""
        return self._ended.wait(timeout_s)

    def output(self) -> str:
        """The end of what the server has written, on standard output and standard error."""
        size = os.fstat(self._output.fileno()).st_size
        # Not by seeking: the server writes at the same file position.
        return os.pread(self._output.fileno(), _OUTPUT_MAX, max(0, size - _OUTPUT_MAX)).decode(errors="replace").strip()

    def stop(self) -> None:
        """Ends the server. May be called again."""
        with self._lock:
            self._stopping = True
            server = self._server
        if server is not None:
            server.terminate()
            try:
                server.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
        self._thread.join()

    def _keep_running(self) -> None:
        short_lives = 0
        while True:
            started = time.monotonic()
            with self._lock:
                if self._stopping:
                    break
                try:
                    server = self._server = self._launch()
                except OSError as error:
                    self._failure = f"cannot be started: {error}"
                    break
            server.wait()
            if self._stopping:
                break
            short_lives = short_lives + 1 if time.monotonic() - started < _SHORT_LIFE_S else 0
            ended = _ended_how(server.returncode)
            if not self._answered or short_lives == _SHORT_LIVES_MAX:
                self._failure = ended
                break
            # At the same address. Its clients announce themselves to it again.
            log.warning("redis-server (process %d) %s; starting it again", server.pid, ended)
            if short_lives:
                time.sleep(_RESTART_PAUSE_S)
        self._ended.set()

    def _launch(self) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            self._command,
            # No file can be created there: the server has no folder that somebody would have to remove.
            cwd="/proc",
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            # In a session of its own, Ctrl-C at the terminal does not reach it: its owner needs the server while it shuts down.
            start_new_session=True,
        )
        assert server.stdin is not None
        with suppress(BrokenPipeError), server.stdin as stdin:  # if it has ended already, its output says why
            stdin.write(self._config)
        return server


def _ended_how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"
