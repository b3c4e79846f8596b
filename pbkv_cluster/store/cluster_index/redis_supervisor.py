"""Runs redis-server for an owner: starts it again if it dies, and ends it with the owner, however the owner ends.

A script for an interpreter of its own (`python redis_guard.py OWNER_PID BINARY < redis.conf`); it imports nothing but the
standard library, so it starts fast and stays small. Why not the parent-death signal set by the owner itself: the kernel sends
that when the *thread* that forked ends, and setting it between fork and exec is not safe in a process with threads. Here there
is one thread. The guard watches the owner, and the kernel watches the guard.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time

OWNER_POLL_S = 0.5
LEAST_LIFE_S = 1.0  # a server that ends sooner cannot run at all
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
            # It died by itself: another takes its place, at the same address, and fills up again from its clients.


def _launch(binary: str, config: bytes, directory: str) -> "subprocess.Popen[bytes]":
    guard = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        if os.getppid() != guard:  # died before the signal was set
            os.kill(os.getpid(), signal.SIGKILL)

    server = subprocess.Popen([binary, "-"], cwd=directory, stdin=subprocess.PIPE, preexec_fn=before_exec)
    assert server.stdin is not None
    try:
        server.stdin.write(config)
        server.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already, and has said why
    return server


def _watch(server: "subprocess.Popen[bytes]", owner: int) -> bool:
    """Waits until the server has ended; tells whether it was to."""
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
