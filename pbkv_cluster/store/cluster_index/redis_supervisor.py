"""Supervises the redis-server of an owner process: restarts it if it dies, and ends it when the owner ends, even by SIGKILL.

A script with an interpreter of its own (`python redis_supervisor.py OWNER_PID BINARY < redis.conf`). It imports only the
standard library, so that it starts fast and stays small. It polls for the owner's end; should the supervisor itself die, the
kernel kills the server by the parent-death signal. The owner cannot set that signal directly: the kernel sends it when the
*thread* that forked ends, and setting it between fork and exec is unsafe in a process with threads. This script has one thread.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time

OWNER_POLL_S = 0.5
LEAST_LIFE_S = 1.0  # a server that ends sooner is not restarted: it cannot run at all
_PR_SET_PDEATHSIG = 1
_WATCHED = {signal.SIGCHLD, signal.SIGTERM}


def main() -> int:
    """Returns the exit status of the server."""
    owner, binary = int(sys.argv[1]), sys.argv[2]
    config = sys.stdin.buffer.read()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    with tempfile.TemporaryDirectory(prefix="pbkv-redis-") as directory:
        while True:
            started = time.monotonic()
            server = _launch(binary, config, directory)
            if _watch(server, owner) or time.monotonic() - started < LEAST_LIFE_S:
                return server.returncode
            # It died by itself: start another at the same address. Its clients announce themselves to it again.


def _launch(binary: str, config: bytes, directory: str) -> "subprocess.Popen[bytes]":
    supervisor = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        if os.getppid() != supervisor:  # the supervisor died before the signal was set
            os.kill(os.getpid(), signal.SIGKILL)

    server = subprocess.Popen([binary, "-"], cwd=directory, stdin=subprocess.PIPE, preexec_fn=before_exec)
    assert server.stdin is not None
    try:
        server.stdin.write(config)
        server.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already; its output says why
    return server


def _watch(server: "subprocess.Popen[bytes]", owner: int) -> bool:
    """Waits until the server has ended. Returns whether it was told to end."""
    told = False
    while server.poll() is None:
        if os.getppid() != owner:
            told = True
            server.kill()
        received = signal.sigtimedwait(_WATCHED, OWNER_POLL_S)
        if received is not None and received.si_signo == signal.SIGTERM:
            told = True
            server.terminate()
    return told


if __name__ == "__main__":
    sys.exit(main())
