"""Why a process under Ray has ended, in words for people."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ray

_STATUS = re.compile(r"exit code (\d+)")
_MEMORY = re.compile(r"Memory on the node \(IP: ([^,)]+)[^)]*\) was (\S+) used / (\S+) limit")

KILLED = "its process was killed by a signal, for example by the kernel for lack of memory"
NODE_LOST = "its node has died"
CONTACT_LOST = "Ray had lost contact with its process, which was killed"


def in_words(error: "ray.exceptions.RayError") -> str:
    """The error of a call that was lost with its process."""
    import ray

    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return _out_of_memory(text)
    if not isinstance(error, ray.exceptions.RayActorError):
        return text
    if isinstance(error, ray.exceptions.ActorUnavailableError) or "killed by `ray.kill`" in text:
        return CONTACT_LOST
    if "node has died" in text or "node was terminated" in text:
        return NODE_LOST
    if status := _STATUS.search(text):
        return f"its process exited with status {status[1]}"
    return KILLED if "unexpectedly exits" in text else text


def _out_of_memory(text: str) -> str:
    full = _MEMORY.search(text)
    how = f" ({full[2]} used of {full[3]} on {full[1]})" if full else ""
    return (
        f"killed by Ray's memory monitor: node memory full{how}. "
        "To switch it off, start the nodes of Ray with RAY_memory_monitor_refresh_ms=0"
    )
