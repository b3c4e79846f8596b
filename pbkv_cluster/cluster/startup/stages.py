"""The stages of a start, told as they end, each with its seconds."""

from collections.abc import Callable

from pbkv_cluster.core.clock import Clock, SystemClock


class Stages:
    """Reports one line for each stage: the seconds since the start, the stage's own seconds, and its name."""

    def __init__(self, report: Callable[[str], None], clock: Clock | None = None) -> None:
        """Args:
        report: takes the lines.
        clock: by default the machine's.
        """
        self._report = report
        self._clock = clock or SystemClock()
        self._began_at = self._last_at = self._clock.now()

    def done(self, stage: str) -> None:
        """Reports a stage that began when the last one ended."""
        now = self._clock.now()
        self._report(f"{now - self._began_at:6.1f} s  {stage} ({now - self._last_at:.1f} s)")
        self._last_at = now
