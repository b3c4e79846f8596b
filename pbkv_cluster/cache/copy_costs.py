"""Whether to copy blocks is faster than to compute them, by the measured speeds and queues of both."""

from collections.abc import Callable, Mapping

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier


class CopyCosts:
    """Seconds of copies from one kind of memory to another, compared with those of prefills."""

    def __init__(
        self,
        copy_seconds: Callable[[Tier, Tier, int], float],
        trial_blocks: Callable[[Tier, Tier], int],
        is_late: Callable[[Tier], bool],
        compute_seconds: Callable[[int], float],
    ) -> None:
        """Args:
        copy_seconds: see `TransferEngine.seconds`.
        trial_blocks: see `TransferEngine.trial_blocks`.
        is_late: see `TransfersInFlight.is_late`.
        compute_seconds: how long the prefill of a number of tokens takes.
        """
        self.copy_seconds = copy_seconds
        self._trial_blocks = trial_blocks
        self._is_late = is_late
        self._compute_seconds = compute_seconds

    def pays(self, by_tier: Mapping[Tier, int], blocks: int, ahead: int = 0, wait_s: float = 0.0) -> bool:
        """Whether blocks are copied to the GPU, from so many tiers, no later than they are computed; or all but those that are
        worth a trial. Never from where something is late.

        Args:
            by_tier: blocks to copy from each tier, none from the GPU; the copies before them are counted.
            blocks: that would have to be computed otherwise; ahead: tokens that would be computed before them.
            wait_s: seconds until all of them are where they are copied from.
        """
        by_tier = {tier: copied for tier, copied in by_tier.items() if tier is not Tier.GPU}
        if any(copied and self._is_late(tier) for tier, copied in by_tier.items()):
            return False
        if self._pays(by_tier, blocks, ahead, wait_s):
            return True
        tried = {tier: min(copied, self._trial_blocks(tier, Tier.GPU)) for tier, copied in by_tier.items()}
        rest = {tier: copied - tried[tier] for tier, copied in by_tier.items()}
        return rest != by_tier and self._pays(rest, blocks - sum(tried.values()), ahead, wait_s)

    def _pays(self, by_tier: Mapping[Tier, int], blocks: int, ahead: int, wait_s: float) -> bool:
        load_s = sum(self.copy_seconds(tier, Tier.GPU, copied) for tier, copied in by_tier.items())
        return wait_s + load_s <= self._compute_seconds(ahead + blocks * BLOCK_TOKENS)

    def worth_loading(self, kind: Tier, blocks: int) -> int:
        """How many of some blocks of a tier are worth loading: all, if that takes no longer than to compute them; else no more
        than are worth a trial.
        """
        if self.pays({kind: blocks}, blocks):
            return blocks
        tried = min(blocks, self._trial_blocks(kind, Tier.GPU))
        return tried if tried and self.pays({kind: tried}, tried) else 0

    def demotion_pays(self, source: Tier, target: Tier, blocks: int) -> bool:
        """Whether blocks may go from one tier to a slower one: they can be loaded as fast as computed, and, beyond the host,
        which is made room in while a step waits, to take them keeps nobody waiting for longer than to compute them would.

        Nothing is kept for a trial: what the tier still has is enough for that.
        """
        if self._is_late(target) or not self._pays({target: 1}, 1, 0, 0.0):
            return False
        if source is Tier.GPU:
            return True
        return self.copy_seconds(source, target, blocks) <= self._compute_seconds(blocks * BLOCK_TOKENS)
