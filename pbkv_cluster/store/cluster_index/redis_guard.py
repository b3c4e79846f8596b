"""Runs redis-server for an owner and ends it with the owner, however the owner ends.

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

OWNER_POLL_S = 0.5
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Returns the exit status of the server."""
    owner, binary = int(sys.argv[1]), sys.argv[2]
    guard = os.getpid()
    watched = {signal.SIGCHLD, signal.SIGTERM}
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        if os.getppid() != guard:  # died before the signal was set
            os.kill(os.getpid(), signal.SIGKILL)

    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    with tempfile.TemporaryDirectory(prefix="pbkv-redis-") as directory:
        server = subprocess.Popen([binary, "-"], cwd=directory, preexec_fn=before_exec)
        while server.poll() is None:
            if os.getppid() != owner:
                server.kill()
            received = signal.sigtimedwait(watched, OWNER_POLL_S)
            if received is not None and received.si_signo == signal.SIGTERM:
                server.terminate()
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
