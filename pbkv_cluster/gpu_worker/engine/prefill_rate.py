"""How fast this worker prefills, measured as it runs."""

from math import inf

from pbkv_cluster.core.ewma import Ewma

_WEIGHT = 0.2  # of the newest measurement


class PrefillRate:
    """Tokens a second, from a moving average of the seconds that each token takes."""

    def __init__(self) -> None:
        self._seconds_per_token = Ewma(_WEIGHT, initial=inf)

    def add(self, tokens: int, seconds: float) -> None:
        """One batch prefilled `tokens` in `seconds`."""
        self._seconds_per_token.add(seconds / tokens)

    @property
    def tokens_per_second(self) -> float:
        """0 before the first measurement."""
        seconds = self._seconds_per_token.value
        return 1 / seconds if seconds else 0.0

    def seconds(self, tokens: int) -> float:
        """How long it takes to prefill that many; infinite before the first measurement."""
        seconds = self._seconds_per_token.value
        return inf if seconds == inf else tokens * seconds
