"""Becomes a redis-server that the kernel kills when its owner ends, even by SIGKILL.

A script with an interpreter of its own (`python redis_launcher.py OWNER_PID BINARY < redis.conf`) that sets the parent-death
signal and then replaces itself by the server, so there is no process between the owner and the server that could be killed. The
owner cannot set the signal itself: setting it between fork and exec is unsafe in a process with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    owner, binary = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != owner:  # it ended before the signal was set
        sys.exit("the process that started this server has ended")
    os.execv(binary, [binary, "-"])


if __name__ == "__main__":
    main()
