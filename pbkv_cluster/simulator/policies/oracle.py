"""The clairvoyant policy: evicts the block whose next use is furthest away (Belady, IBM Systems Journal 5(2), 1966).

It is the policy of all tiers. What leaves the GPU takes the place of what the next tier would use last, if that is later; so
what is dropped is, of all that the tiers hold together, the block that is used last. That is Belady over the total memory but
for what lies in two tiers at a time; `evaluation.comparison` also runs it with all memory on the GPU, for a bound without that.

When a block is used next depends on how fast everything runs, and so on the policy itself. The oracle takes the order in which
steps began in an earlier run of the same workload under LRU, and skips the steps that have begun in this run. It knows exactly
which steps use which blocks, and nearly exactly in which order: a strong reference, not a proven bound. Like every policy it
chooses only what is evicted, not what is loaded.

A tree node holds blocks that have always been used together. After each step the nodes on its path are split where next uses
differ (`FutureUses.split`), so that the end of a node can be evicted without its beginning. Only the simulator has this policy.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.simulator.workload.token_source import NAMESPACE

Use = tuple[float, str]
"""When a step begins, and its id."""


class FutureUses:
    """Uses of blocks by steps that have not begun yet."""

    def __init__(self, steps: Iterable[tuple[float, str, Collection[bytes]]], begun: Collection[str]) -> None:
        """Args:
        steps: when each step begins (any unit), its id, and the keys of its prompt's blocks.
        begun: ids of the steps that have begun in the present run, read at each call.
        """
        self._begun = begun
        self._uses: dict[bytes, list[Use]] = defaultdict(list)  # the next use is last
        for at, step, keys in sorted(steps, key=lambda entry: entry[0], reverse=True):
            for key in keys:
                self._uses[key].append((at, step))

    def next_use(self, key: bytes) -> float:
        """When a block is used next; infinite if it never is."""
        uses = self._uses.get(key)
        if not uses:
            return math.inf
        while uses and uses[-1][1] in self._begun:
            uses.pop()
        return uses[-1][0] if uses else math.inf

    def split(self, cache: KVCache, tokens: bytes) -> None:
        """Splits the nodes on the path of `tokens` wherever neighbouring blocks have different next uses."""
        for node in cache.tree.match(cache.tree.root(NAMESPACE), tokens).path:
            uses = [self.next_use(node.key(block)) for block in range(node.blocks)]
            lower = node
            for block in range(node.blocks - 1, 0, -1):
                if uses[block] != uses[block - 1]:
                    upper = cache.tree.split(lower, block)
                    cache.tiers.offer(lower)
                    lower = upper
            cache.tiers.offer(lower)


_future: ContextVar[FutureUses] = ContextVar("future")


@contextmanager
def oracle_knows(future: FutureUses) -> Iterator[None]:
    """Gives `future` to every oracle that is made in this context."""
    token = _future.set(future)
    try:
        yield
    finally:
        _future.reset(token)


@POLICIES.register("oracle")
class Oracle(ReusePolicy):
    """Evicts the block whose next use is furthest away."""

    uses_forecasts = False
    positional = True

    def __init__(self, config: CacheConfig) -> None:
        """Raises:
        FailedPrecondition: made outside `oracle_knows`; only a simulation knows the future.
        """
        del config
        future = _future.get(None)
        if future is None:
            raise FailedPrecondition("cache.policy: the oracle knows the future of simulated workflows only")
        self._future = future

    def value(self, node: Node, now: float) -> float:
        last = max(0, (node.held[GPU] or node.blocks) - 1)  # eviction starts at the node's end
        return -self._future.next_use(node.key(last))
