"""The bound on steps in flight."""

from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.step.step import Step


class Admission:
    """Lets in at most `max_steps` steps at a time."""

    def __init__(self, max_steps: int, decisions: Decisions) -> None:
        self._max = max_steps
        self._decisions = decisions
        self._steps: set[Step] = set()

    def __len__(self) -> int:
        return len(self._steps)

    def admit(self, step: Step) -> None:
        """Raises:
        ResourceExhausted: too many steps are in flight.
        """
        if len(self._steps) >= self._max:
            self._decisions[Reason.STEP_REFUSED] += 1
            raise ResourceExhausted(f"{self._max} steps are in flight already")
        self._steps.add(step)

    def release(self, step: Step) -> None:
        self._steps.discard(step)
