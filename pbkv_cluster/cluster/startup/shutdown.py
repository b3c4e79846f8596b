"""Ends a `pbkv serve` and everything that it has started on this machine; it ends its members on other machines itself."""

import signal
import time
from collections.abc import Callable

from pbkv_cluster.cluster.startup.process_tree import ProcessId, descendants, find, runs, send
from pbkv_cluster.cluster.startup.run_record import RunRecord
from pbkv_cluster.core.errors import Unavailable

_POLL_S = 0.05
_KILLED_S = 10.0  # for processes that were killed to be gone


def end(cluster: RunRecord, timeout_s: float, report: Callable[[str], None]) -> None:
    """Returns when nothing of it is left. What has not ended in good order after `timeout_s` seconds is killed, and told.

    Raises:
        Unavailable: something of it cannot be killed.
    """
    server = find(cluster.pid)
    if server is None or not cluster.runs:  # in this order: while its folder is locked, the number is its own
        return
    present = {server, *descendants(server.pid)}
    send(server, signal.SIGTERM)
    present = _await_end(server, present, timeout_s)
    if not present:
        return
    report(f"{len(present)} processes did not end in {timeout_s:g} s; they are killed")
    for process in present:
        send(process, signal.SIGKILL)
    if left := _await_end(server, present, _KILLED_S):
        raise Unavailable(f"processes that cannot be killed: {', '.join(str(process.pid) for process in left)}")


def _await_end(server: ProcessId, present: set[ProcessId], timeout_s: float) -> set[ProcessId]:
    """Waits for processes to end, and for what the server starts meanwhile. Returns those that have not."""
    deadline = time.monotonic() + timeout_s
    while True:
        if runs(server):
            present = present | {*descendants(server.pid)}
        present = {process for process in present if runs(process)}
        if not present or time.monotonic() >= deadline:
            return present
        time.sleep(_POLL_S)
