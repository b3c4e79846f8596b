"""`pbkv serve --detach`: the cluster runs in a process that outlives the shell that started it."""

import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

import typer

from pbkv_cluster.cli.operation.log_file import follow, new_log
from pbkv_cluster.core.errors import StartupError

_READY = b"."


class Detached:
    """The process that serves, detached from its terminal. Its parent waits until it is ready."""

    def __init__(self, ready: int) -> None:
        self._ready = ready  # file descriptor

    def ready(self) -> None:
        """Lets the parent go."""
        with suppress(BrokenPipeError):  # the parent was killed; nobody waits
            os.write(self._ready, _READY)
        os.close(self._ready)


def detach(log: Path) -> Detached | None:
    """Forks. Must be called before there are threads, so before Ray or gRPC is used.

    Returns:
        In the new process, which is the leader of a session of its own and prints to `log`: a handle for saying that it is
        ready. In this process: None, when the other has said so.

    Raises:
        StartupError: the log cannot be written, or the other process has ended instead; it has said why, and that was printed.
    """
    try:
        file = new_log(log)
    except OSError as error:
        raise StartupError(f"the log {log} cannot be written: {error.strerror}") from None
    ready, tell = os.pipe()
    pid = os.fork()
    if pid:
        file.close()
        os.close(tell)
        try:
            _await(pid, ready, log)
        finally:
            os.close(ready)
        return None
    os.close(ready)
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    file.close()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return Detached(tell)


def _await(pid: int, ready: int, log: Path) -> None:
    """Prints what the new process prints until it is ready."""
    said: list[bytes] = []  # what it has said of being ready, or nothing at its end

    def goes_on() -> bool:
        if not said and select.select([ready], [], [], 0)[0]:
            said.append(os.read(ready, 1))
        return not said

    try:
        for text in follow(log, 0, goes_on):
            typer.echo(text, nl=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if said != [_READY]:
        os.waitpid(pid, 0)
        raise StartupError(f"the cluster did not start; the log is {log}")
