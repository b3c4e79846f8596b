"""A speed, measured as one goes."""

_SHARE = 0.2  # of the newest measurement


class Rate:
    """Things a second, as an exponentially weighted mean of the time each takes."""

    def __init__(self) -> None:
        self._seconds_each: float | None = None

    def add(self, things: int, seconds: float) -> None:
        """`things` took `seconds` together."""
        each = seconds / things
        self._seconds_each = each if self._seconds_each is None else (1 - _SHARE) * self._seconds_each + _SHARE * each

    @property
    def per_second(self) -> float:
        """0 before the first measurement."""
        return 1 / self._seconds_each if self._seconds_each else 0.0

    def seconds(self, things: int) -> float:
        """How long that many take; without end before the first measurement."""
        return float("inf") if self._seconds_each is None else things * self._seconds_each
