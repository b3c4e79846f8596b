"""What one policy alone would have hit on the steps of a cache: the same bookkeeping, without any KV."""

from collections.abc import Callable, Mapping, Sequence

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine, TransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier


class _ShadowTransfers(NullTransferEngine):
    """Copies nothing, and knows how long the cache's engine would take."""

    def __init__(self, engine: TransferEngine) -> None:
        self.seconds = engine.seconds  # type: ignore[method-assign]
        self.trial_blocks = engine.trial_blocks  # type: ignore[method-assign]


class Shadow:
    """A cache with tiers as large as those of another cache, which is shown what the other does.

    Steps are known by the handles that the cache has given them. A step that the shadow has no room for continues without it;
    the prefix that the shadow holds of it counts as hit.

    Memory: a tree and pools; some 90 bytes for each block of capacity, 64 of them tokens. Block keys are never hashed, and the
    cache's records of workflows serve here, too.
    """

    def __init__(
        self,
        capacity: Mapping[Tier, int],
        config: CacheConfig,
        policies: Sequence[ReusePolicy],
        engine: TransferEngine,
        clock: Clock,
        compute_seconds: Callable[[int], float],
    ) -> None:
        """Args:
        capacity: blocks of each tier.
        config: parameters of the policies.
        policies: those that are followed, one for each tier.
        engine: the cache's, which is asked for times only.
        clock: the cache's.
        compute_seconds: the cache's.
        """
        config = config.model_copy(update={"prefetch": "none", "demote_early": False})
        self.cache = KVCache(
            capacity, config, _ShadowTransfers(engine), clock, compute_seconds=compute_seconds, policies=policies
        )
        self._handles: dict[CacheHandle, CacheHandle] = {}  # this cache's, by those of the other

    @property
    def running(self) -> int:
        """Steps that run in the shadow, too."""
        return len(self._handles)

    @property
    def has_dropped(self) -> bool:
        """Whether all tiers have been full, so that its hits depend on its policies and not on when it was made."""
        return self.cache.tiers.has_dropped

    def open(self, step: StepIdentity, tokens: bytes, handle: CacheHandle) -> Mapping[Tier, int]:
        """A step was admitted to the cache. Returns how many of its tokens each tier has here."""
        own = self.cache.open(step, tokens, shadow_of=handle, ahead=handle.ahead)
        if own is None:
            return self.cache.captured(step.namespace, tokens)
        self._handles[handle] = own
        return own.delivered

    def enter(self, handle: CacheHandle, tokens: bytes | bytearray, computed: int | None) -> None:
        """Commits a step's blocks here as far as the cache has committed them.

        Args:
            handle: the cache's.
            tokens: of the sequence, from its start.
            computed: how many of them have had their KV computed; None: all.
        """
        own = self.grow(handle)
        if own is not None:
            self.cache.commit(own, tokens, computed)

    def grow(self, handle: CacheHandle) -> CacheHandle | None:
        """Gives a step as many blocks here as it has in the cache; if there is no room, it ends here. Returns its handle."""
        own = self._handles.get(handle)
        if own is not None and not self.cache.grow(own, len(handle.table) * BLOCK_TOKENS):
            self.close(handle)
            return None
        return own

    def close(self, handle: CacheHandle) -> None:
        """A step has ended, or was preempted."""
        own = self._handles.pop(handle, None)
        if own is not None:
            self.cache.close(own)

    def hear(self, workflow: str, namespace: Namespace, position: int) -> None:
        """A step has begun or ended on another worker: the record that both caches use may have been cut anew."""
        owner = self.cache.workflows.find(workflow)
        if owner is not None and self.cache.workflows.recorded:
            self.cache.remote.follow(owner, self.cache.tree.root(namespace), owner.record.path(position))

    def end(self) -> None:
        """Lets go of all workflows, which a policy that knows them from another cache, too, may still refer to."""
        for owner in self.cache.workflows.all():
            owner.nodes.clear()
