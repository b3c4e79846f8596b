"""The bounds on steps in flight."""

from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.step.step import Step


class Admission:
    """Lets in at most `max_steps` steps at a time, with requests of at most `max_bytes` bytes together."""

    def __init__(self, max_steps: int, max_bytes: int, decisions: Decisions) -> None:
        self._max_steps = max_steps
        self._max_bytes = max_bytes
        self._decisions = decisions
        self._steps: dict[Step, int] = {}  # bytes of each
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    def admit(self, step: Step, size_bytes: int) -> None:
        """Lets a step in.

        Args:
            step: that is to run.
            size_bytes: of its request.

        Raises:
            ResourceExhausted: too many steps are in flight, or they are too large.
        """
        if len(self._steps) >= self._max_steps:
            raise self._refusal(f"{self._max_steps} steps are in flight already (gateway.max_steps)")
        if self._bytes + size_bytes > self._max_bytes:
            raise self._refusal(
                f"{size_bytes} bytes are too many: steps in flight have {self._bytes} of {self._max_bytes} "
                "(gateway.max_step_bytes)"
            )
        self._steps[step] = size_bytes
        self._bytes += size_bytes

    def release(self, step: Step) -> None:
        """A step is over. Harmless when repeated."""
        self._bytes -= self._steps.pop(step, 0)

    def _refusal(self, problem: str) -> ResourceExhausted:
        self._decisions[Reason.STEP_REFUSED] += 1
        return ResourceExhausted(problem)
