"""The processes of a Ray cluster that this process has started: without them, nobody restarts a member."""

import os
import signal

from pbkv_cluster.cluster.startup.process_tree import processes
from pbkv_cluster.core.errors import Unavailable

_VITAL = {"raylet", "gcs_server"}


class RayProcesses:
    """Ray's vital processes among the children of this process."""

    def __init__(self) -> None:
        ours = (process for process in processes() if process.parent == os.getpid())
        self._names = {process.id.pid: process.name for process in ours if process.name in _VITAL}

    def check_alive(self) -> None:
        """Raises:
        Unavailable: one has ended; says how.
        """
        for pid, name in self._names.items():
            try:
                # Its status is left for Ray to collect.
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # Ray has collected it already
                raise _lost(name, pid, "has ended") from None
            if ended is not None:
                killed = ended.si_code != os.CLD_EXITED
                how = f"was killed by {signal.Signals(ended.si_status).name}" if killed else f"exited with {ended.si_status}"
                raise _lost(name, pid, how)


def _lost(name: str, pid: int, how: str) -> Unavailable:
    return Unavailable(f"Ray's {name} (process {pid}) {how}: members that fail are not restarted any more")
