"""Copies what is next to leave the GPU to the next tier ahead of that, so that no step waits for it."""

from dataclasses import replace

from pbkv_cluster.cache.prefetch.usefulness import Usefulness
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import GPU, Node

_SHARE = 8  # of the GPU's blocks, one in so many should be free, or have a copy
_UNMEASURED = 16  # blocks, while no demotion has been measured
_MOST = 1024  # blocks, each time
_LOOKED_AT = 64  # candidates, each time


class EarlyDemotion:
    """Early demotions of one cache. The blocks stay on the GPU until their slots are needed.

    Which blocks these are the eviction order tells: under a policy that knows pauses, those of workflows that wait for a long
    tool call come before those of workflows that will go on at once.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._reserve = tiers.gpu.pool.capacity // _SHARE
        self._useful = Usefulness()

    def run(self, seconds: float, now: float) -> int:
        """Starts the copies that are worth making now, but none while earlier ones are under way. Returns the blocks.

        Args:
            seconds: that they may take: of the batch that is about to run.
            now: seconds.
        """
        gpu, slower = self._tiers.gpu, self._tiers.gpu.slower
        lacking = self._reserve - gpu.pool.room
        if slower is None or lacking <= 0 or self._tiers.in_flight.writes_to(slower.kind):
            return 0
        budget = self._budget(seconds)
        allowance = self._useful.allowance(replace(self._tiers.prefetched.early.count), now)
        if allowance is not None:
            budget = min(budget, allowance)
        if budget <= 0:
            return 0
        self._tiers.before_eviction()
        planned = list[tuple[Node, int]]()  # first, because a copy may evict from the next tier, which changes the order
        for number, (node, _) in enumerate(gpu.active_queue.in_order()):
            if missing := len(node.last_copies(GPU, range(node.held[GPU]))):
                planned.append((node, min(missing, lacking, budget)))
                budget -= planned[-1][1]
            lacking -= node.held[GPU]
            if lacking <= 0 or budget <= 0 or number == _LOOKED_AT:
                break
        copied = 0
        for node, blocks in planned:
            done = self._copy(node, blocks)
            copied += done
            if done < blocks:
                break  # what leaves the GPU later must not take the room of what leaves it sooner
        return copied

    def _copy(self, node: Node, wanted: int) -> int:
        """Copies up to so many of a node's blocks that no slower tier has, the last ones first, as they leave the GPU."""
        gpu, slower, evictor = self._tiers.gpu, self._tiers.gpu.slower, self._tiers.evictor
        assert slower is not None
        blocks = node.last_copies(GPU, range(node.held[GPU]))[-wanted:]
        blocks = evictor.free_to_leave(gpu, node, blocks, stay=True)
        blocks = blocks[max(0, len(blocks) - slower.pool.free_slots) :]
        if not blocks:
            return 0
        before = node.held[slower.index]
        evictor.copy_down(gpu, slower, node, blocks, "demote_early", waits=False)
        evictor.submit_demotions(gpu)
        self._tiers.note(node, blocks[0], blocks[-1] + 1)
        copied = node.held[slower.index] - before
        self._tiers.prefetched.early.copied(node, copied)
        self._tiers.order.resized(node)
        return copied

    def _budget(self, seconds: float) -> int:
        """Blocks that can be demoted within so many seconds."""
        gpu, slower = self._tiers.gpu, self._tiers.gpu.slower
        assert slower is not None
        waiting, one = (self._tiers.costs.copy_seconds(gpu.kind, slower.kind, blocks) for blocks in (0, 1))
        if one <= waiting:
            return _UNMEASURED
        return min(_MOST, max(0, int((seconds - waiting) / (one - waiting) + 1e-9)))
