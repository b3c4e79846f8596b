"""How fast one lane copies, from its latest transfers."""

from collections import deque
from collections.abc import Callable
from math import inf
from statistics import median_low

TRIAL_AFTER_S, TRIAL_BLOCKS = 30.0, 8
_LATEST = 5  # transfers


class LaneSpeed:
    """The median of the latest transfers, of two the faster one: so one that was held up changes nothing.

    What is too slow to be used is not measured again. So a lane that has brought nothing for a while is worth a trial with a
    few blocks, after which of all earlier transfers only the latest counts.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Args:
        now: seconds that never go back.
        """
        self.block_s = 0.0  # seconds that a block takes; 0: none has been measured
        self._now = now
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._measured_at = inf

    def add(self, blocks: int, seconds: float) -> None:
        """Takes in a transfer. The lane's thread calls this, and others may read meanwhile.

        Args:
            blocks: that have arrived; at least one. A transfer that has brought nothing says nothing of the lane.
            seconds: that they took.
        """
        if self.needs_trial:
            while len(self._latest) > 1:
                self._latest.popleft()
        self._latest.append(seconds / blocks)
        self.block_s, self._measured_at = median_low(self._latest), self._now()

    @property
    def needs_trial(self) -> bool:
        """Whether its latest transfer was long ago."""
        return self._now() - self._measured_at >= TRIAL_AFTER_S
