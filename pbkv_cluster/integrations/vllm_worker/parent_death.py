"""No process of a vLLM worker outlives the one that has started it, however that ends: the kernel kills it then.

That holds along the chain from the actor over the worker's process and vLLM's engine to the engine's own workers, so that a
worker that is killed leaves no engine with a GPU's memory. For the kernel, a parent is the thread that has started a process:
here the actor's event loop, a thread of the loop's executor, which has no end before the loop, and the engine's main thread.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, and with its parent already gone ends it now.

    The first process of a session is not ended now: its parent is outside, and the end of its input tells it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
    session = os.getsid(0)
    if session != os.getpid() and _session_of(os.getppid()) != session:  # whoever takes over orphans is of another one
        os.kill(os.getpid(), signal.SIGKILL)


def _session_of(pid: int) -> int | None:
    """None: there is no such process any more."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
