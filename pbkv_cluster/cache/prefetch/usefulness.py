"""Whether prefetched blocks that take the place of others are used often enough to go on."""

from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount

_USED_MIN = 0.5  # share of the blocks
_WINDOW = 1024  # blocks after which the share has forgotten half of what came before
_TRIAL = 256  # blocks that are loaded before it is known whether they are used
_PAUSE_S, _PAUSE_MAX_S = 30.0, 480.0


class Usefulness:
    """Decides for one source. It begins with a trial; where the used share gets too low it pauses, then tries again.

    Each pause is twice as long as the one before, until a trial succeeds.
    """

    def __init__(self) -> None:
        self._seen = PrefetchCount()  # at the last update
        self._used = self._settled = 0.0  # decayed blocks
        self._arrived_before = 0  # blocks, when the present trial began
        self._pause_s = _PAUSE_S
        self._paused_until = 0.0

    @property
    def share(self) -> float | None:
        """Used share of the latest blocks; None: too few are settled."""
        return self._used / self._settled if self._settled >= _TRIAL else None

    def allowance(self, count: PrefetchCount, now: float) -> int | None:
        """How many more blocks may be loaded in place of others; None: no limit.

        Args:
            count: of the source, so far.
            now: seconds.
        """
        self._update(count)
        if now < self._paused_until:
            return 0
        if self._paused_until:
            self._paused_until = 0.0
            self._restart(count)
        share = self.share
        if share is None:
            return max(0, 2 * _TRIAL - (count.loaded - count.cancelled - self._arrived_before))
        if share >= _USED_MIN:
            self._pause_s = _PAUSE_S
            return None
        self._paused_until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        return 0

    def _update(self, count: PrefetchCount) -> None:
        used, wasted = count.used - self._seen.used, count.wasted - self._seen.wasted
        if used or wasted:
            kept = 0.5 ** ((used + wasted) / _WINDOW)
            self._used = kept * self._used + used
            self._settled = kept * self._settled + used + wasted
        self._seen = count

    def _restart(self, count: PrefetchCount) -> None:
        self._used = self._settled = 0.0
        self._arrived_before = count.used + count.wasted
