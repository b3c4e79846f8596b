"""Block leases: what clients ask to stay cached for a while, within the share of their tenant.

A leased block is the last to leave a tier, and leaves it all the same before a step lacks room: a lease is a wish, and nothing
waits for its end. It counts from the moment at which it is asked for until it expires, and in no decision after that.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import count

from pbkv_cluster.cache.tree.node import BlockLease, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock

LEASES_MAX, LEASES_TOGETHER = 256, 1024  # of one tenant, and of all
_TOGETHER = 0.5  # share of the GPU's blocks that all tenants together may have leased
_SLACK = 64  # entries of ended leases that are not worth a rebuild


class BlockLeases:
    """The leases of one cache."""

    def __init__(
        self,
        tree: PrefixTree,
        offer: Callable[[Node], None],
        clock: Clock,
        gpu_blocks: int,
        share: float,
        decisions: Counter[str],
    ) -> None:
        """Args:
        tree: whose blocks are leased.
        offer: ranks a node anew wherever it is a candidate for eviction.
        clock: the cache's.
        gpu_blocks: capacity of the GPU.
        share: of these blocks, which one tenant may have leased in all tiers together.
        decisions: counts blocks by reason.
        """
        self._tree = tree
        self._offer = offer
        self._clock = clock
        self.limit = int(share * gpu_blocks)  # blocks of one tenant
        self._together = int(max(share, _TOGETHER) * gpu_blocks)
        self._decisions = decisions
        self._leases: dict[tuple[str, str], BlockLease] = {}  # by tenant and id
        self._tenants = Counter[str]()  # leases of each
        self._number = count()
        self._due: list[tuple[float, int, BlockLease]] = []  # a heap; some have ended already

    def __len__(self) -> int:
        self.expire()
        return len(self._leases)

    @property
    def entries(self) -> int:
        """Entries of the queue of ends, those of ended leases included: at most 64 more than twice the leases."""
        return len(self._due)

    @property
    def blocks(self) -> int:
        """Leased blocks that are cached; those that several tenants have leased count once for each."""
        self.expire()
        return self._tree.leased.total()

    def __iter__(self) -> Iterator[BlockLease]:
        return iter(self._leases.values())

    def seconds_left(self, node: Node) -> float:
        """Until the last lease of a node ends; 0: it has none."""
        self.expire()
        return max((lease.expires_at - self._clock.now() for lease in node.leases), default=0.0)

    def lease(self, namespace: Namespace, tokens: bytes, lease_id: str, seconds: float, workflow: str = "") -> tuple[int, int]:
        """Leases the first cached blocks of a prompt, as many as the tenant may still have. It begins anew if it exists.

        Once there are as many leases as there may be, a tenant that has fewer than another takes the place of that one's.

        Args:
            namespace: of the prompt; its salt is the tenant.
            tokens: of the prompt, packed.
            lease_id: unique among the tenant's.
            seconds: until it expires.
            workflow: with which it ends; empty: none.

        Returns:
            Blocks that are cached, and those of them that are leased now.
        """
        tenant = namespace.salt
        self.release(tenant, lease_id)
        match = self._tree.match(self._tree.root(namespace), tokens)
        if not match.path or not self._is_within_limit(match.path[0], tenant) or not self._has_place(tenant):
            self._decisions["lease_refused"] += match.blocks
            return match.blocks, 0
        expires_at = self._clock.now() + seconds
        lease = BlockLease(tenant, lease_id, workflow, self._tree.root(namespace), expires_at)
        leased = 0
        for node in match.path:
            part = self._within_limit(node, min(node.blocks, match.blocks - leased), tenant)
            if part is None:
                break
            self._tree.lease(part, lease)
            self._offer(part)
            leased += part.blocks
            if part is not node:
                break
        if leased:
            self._leases[tenant, lease_id] = lease
            self._tenants[tenant] += 1
            heapq.heappush(self._due, (expires_at, next(self._number), lease))
            if len(self._due) > 2 * len(self._leases) + _SLACK:
                self._due = [entry for entry in self._due if self._is_open(entry[2])]
                heapq.heapify(self._due)
        self._decisions["lease"] += leased
        self._decisions["lease_refused"] += match.blocks - leased
        return match.blocks, leased

    def _is_within_limit(self, node: Node, tenant: str) -> bool:
        """Whether a tenant's own limits let it lease any of a node; to be asked before another's lease is ended for it."""
        has_room = tenant in node.tenants or self._tree.leased[tenant] < self.limit
        return has_room and self._tenants[tenant] < LEASES_MAX

    def _within_limit(self, node: Node, blocks: int, tenant: str) -> Node | None:
        """The upper part of a node, with so many blocks at most, that a tenant may lease; None: none of it."""
        if tenant not in node.tenants:
            leased = self._tree.leased
            blocks = min(blocks, self.limit - leased[tenant], self._together - leased.total())
        if blocks <= 0:
            return None
        if blocks == node.blocks:
            return node
        upper = self._tree.split(node, blocks)
        self._offer(node)
        return upper

    def release(self, tenant: str, lease_id: str) -> int:
        """Ends a lease. Returns the blocks that it was for and that are cached; 0 if there is none."""
        self.expire()
        lease = self._leases.get((tenant, lease_id))
        return 0 if lease is None else self._end((lease,), "lease_released")

    def workflow_ended(self, workflow: str) -> None:
        """Ends the leases that were to end with a workflow."""
        self._end([each for each in self._leases.values() if each.workflow == workflow], "lease_ended_with_workflow")

    def expire(self) -> None:
        """Ends the leases whose time is over; to be called before every decision that goes by leases."""
        over = list[BlockLease]()
        while self._due and self._due[0][0] <= self._clock.now():
            lease = heapq.heappop(self._due)[2]
            if self._is_open(lease):
                over.append(lease)
        if over:
            self._end(over, "lease_expired")

    def _is_open(self, lease: BlockLease) -> bool:
        """Whether it has neither ended nor begun anew."""
        return self._leases.get((lease.tenant, lease.id)) is lease

    def _has_place(self, tenant: str) -> bool:
        """Whether a tenant may have one lease more. One of the tenant that has most is ended for it, the next to expire."""
        if len(self._leases) < LEASES_TOGETHER:
            return True
        other, most = self._tenants.most_common(1)[0]
        if most <= self._tenants[tenant] + 1:
            return False
        theirs = (each for each in self._leases.values() if each.tenant == other)
        self._end((min(theirs, key=lambda each: each.expires_at),), "lease_displaced")
        return True

    def _end(self, leases: Collection[BlockLease], reason: str) -> int:
        """Ends leases, all together: many may be on the same nodes. Returns the blocks that they were for."""
        ended, blocks = dict[Node, set[BlockLease]](), 0
        for lease in leases:
            del self._leases[lease.tenant, lease.id]
            self._tenants[lease.tenant] -= 1
            if not self._tenants[lease.tenant]:
                del self._tenants[lease.tenant]  # tenants are not counted for ever
            for node in lineage(lease.node):
                ended.setdefault(node, set()).add(lease)
                blocks += node.blocks
        for node, its in ended.items():
            self._tree.end_leases(node, its)
            self._offer(node)
        self._decisions[reason] += blocks
        return blocks
