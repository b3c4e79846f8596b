"""The clairvoyant policy: evicts the block whose next use is furthest away (Belady, IBM Systems Journal 5(2), 1966).

When a block is used next depends on how fast everything runs, and so on the policy itself. The oracle goes by the order in
which steps began in a recorded run of the same workload under another policy (LRU), and by which of them have begun in this
run; both are known exactly. So it is clairvoyant about which steps use which blocks, and nearly so about their order: a
strong reference, not a proven bound. Eviction is demand eviction as everywhere: it chooses what leaves, not what comes.

The tree keeps together what has always been used together. What has a different future is cut apart after each step
(`Future.cut`), so that the end of a run of blocks can go without its beginning. Only the simulator registers this policy.
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


class Future:
    """The uses of every block that have not happened yet."""

    def __init__(self, steps: Iterable[tuple[float, str, Collection[bytes]]], begun: Collection[str]) -> None:
        """Args:
        steps: when each step begins (any unit), its id, and the keys of the blocks of its prompt.
        begun: ids of the steps that have begun in the run at hand; grows as it goes.
        """
        self._begun = begun
        self._uses: dict[bytes, list[Use]] = defaultdict(list)
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

    def cut(self, cache: KVCache, tokens: bytes) -> None:
        """Cuts the nodes of a path where the next uses of neighbouring blocks differ."""
        for node in cache.tree.match(cache.tree.root(NAMESPACE), tokens).path:
            uses = [self.next_use(node.key(block)) for block in range(node.blocks)]
            lower = node
            for block in range(node.blocks - 1, 0, -1):
                if uses[block] != uses[block - 1]:
                    upper = cache.tree.split(lower, block)
                    cache.tiers.offer(lower)
                    lower = upper
            cache.tiers.offer(lower)


_known: ContextVar[Future] = ContextVar("known")


@contextmanager
def knowing(future: Future) -> Iterator[None]:
    """Policies called `oracle` that are made in this context know `future`."""
    token = _known.set(future)
    try:
        yield
    finally:
        _known.reset(token)


@POLICIES.register("oracle")
class Oracle(ReusePolicy):
    """The block whose next use is furthest away goes first."""

    heeds_forecasts = False
    positional = True

    def __init__(self, config: CacheConfig) -> None:
        """Raises:
        FailedPrecondition: the future is not known here; only a simulation knows it.
        """
        del config
        future = _known.get(None)
        if future is None:
            raise FailedPrecondition("cache.policy: the oracle knows the future of simulated workflows only")
        self._future = future

    def value(self, node: Node, now: float) -> float:
        last = max(0, (node.held[GPU] or node.blocks) - 1)  # eviction begins there
        return -self._future.next_use(node.key(last))
