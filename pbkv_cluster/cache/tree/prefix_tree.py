"""The prefix tree: a path-compressed radix tree over blocks of packed tokens.

The tree knows which blocks lie in which slots, who owns them and who uses them; it transfers and frees nothing itself.
"""

from collections import Counter
from collections.abc import Iterator, Set

from pbkv_cluster.cache.tree.node import ABSENT, GPU, NO_LEASES, NO_SLOTS, BlockLease, Node, Slots
from pbkv_cluster.core.blocks import KEY_BYTES, Namespace
from pbkv_cluster.core.token_trie import Walk, cut, walk
from pbkv_cluster.core.tokens import BLOCK_BYTES

Match = Walk[Node]


class PrefixTree:
    """One tree per namespace. All counts are in blocks."""

    def __init__(self, tiers: int) -> None:
        """Args:
        tiers: number of tiers that its blocks may lie in.
        """
        self._roots: dict[Namespace, Node] = {}
        self._by_digest: dict[bytes, Node] = {}  # the same, and those of stored blocks whose namespace has not been named yet
        self._tiers = tiers
        self._slower_than = [tuple(range(tier + 1, tiers)) for tier in range(tiers)]
        self.nodes = 0
        self.evictable = [0] * tiers  # blocks in each tier that no running sequence uses
        self.held = [0] * tiers  # blocks in each tier
        self.leased = Counter[str]()  # blocks, by the tenants that have leased them; see `BlockLease`

    def root(self, namespace: Namespace) -> Node:
        """The root of a namespace's tree."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = self.root_of(namespace.digest())
        return root

    def root_of(self, digest: bytes) -> Node:
        """The root of the tree of the namespace that has this digest."""
        root = self._by_digest.get(digest)
        if root is None:
            root = self._by_digest[digest] = Node(b"", None, self._tiers, keys=digest)
        return root

    def known_root(self, digest: bytes) -> Node | None:
        """The root of that tree, if there has been a block in it."""
        return self._by_digest.get(digest)

    # --- matching ---

    def match(self, root: Node, tokens: bytes, limit: int | None = None) -> Match:
        """The longest prefix of `tokens` that the tree knows, at most `limit` blocks. Changes nothing."""
        end = len(tokens) // BLOCK_BYTES * BLOCK_BYTES
        if limit is not None:
            end = min(end, limit * BLOCK_BYTES)
        return walk(root.children, tokens, end)

    # --- structure ---

    def add_child(self, parent: Node, tokens: bytes, gpu_slots: Slots, output: bool) -> Node:
        """Adds a leaf whose blocks the GPU holds. `parent` must not have a child with the same first block."""
        child = self._add_child(Node(tokens, parent, self._tiers, output), parent)
        self.place(child, GPU, 0, gpu_slots)
        return child

    def add_stored(self, parent: Node, tokens: bytes, keys: bytes) -> Node:
        """Adds a leaf, and slower tiers hold each of its blocks, as `place` must be told before anything else.

        `parent` must not have a child with the same first block.
        """
        return self._add_child(Node(tokens, parent, self._tiers, keys=keys), parent)

    def _add_child(self, child: Node, parent: Node) -> Node:
        parent.children[child.first_block()] = child
        parent.writer = None
        self.nodes += 1
        return child

    def append(self, node: Node, tokens: bytes, gpu_slots: Slots) -> None:
        """Extends a leaf by blocks that the GPU holds."""
        node.append(tokens, gpu_slots)
        self._count(node, GPU, len(gpu_slots))

    def split(self, node: Node, blocks: int) -> Node:
        """Cuts a node in two after its first `blocks` blocks. Returns the new upper part; `node` becomes the lower.

        The lower part stays the same object, so that locks and writers that end there stay right.
        """
        assert 0 < blocks < node.blocks
        parent = node.parent
        assert parent is not None
        upper = Node(node.tokens[: blocks * BLOCK_BYTES], parent, self._tiers, node.output, node.keys[: blocks * KEY_BYTES])
        cut(node, upper, parent.children)
        node.keys = node.keys[blocks * KEY_BYTES :]
        # Where the parent counts the node, it now counts the upper part: on the GPU, which holds a leading run, and in the last
        # tier, where every node counts. For tiers in between, what counted may all lie in the lower part.
        counted = [tier for tier in self._slower_than[GPU][:-1] if any(node.held[: tier + 1])]
        for tier, own in enumerate(node.slots):
            if own:
                upper.slots[tier], node.slots[tier] = own[:blocks], own[blocks:]
                upper.held[tier] = blocks - upper.slots[tier].count(ABSENT)
                node.held[tier] -= upper.held[tier]
                for part in (upper, node):
                    if not part.held[tier]:
                        part.slots[tier] = NO_SLOTS
        upper.held_children = [int(any(node.held[: tier + 1])) for tier in range(self._tiers)]
        for tier in counted:
            parent.held_children[tier] -= not any(upper.held[: tier + 1])
        upper.refs = node.refs
        upper.last_access = node.last_access
        upper.entry = node.entry
        upper.uses = node.uses
        upper.leases, upper.sheltered = node.leases, node.sheltered
        upper.prefetched, upper.prefetched_for = max(0, node.prefetched - node.held[GPU]), node.prefetched_for
        node.prefetched -= upper.prefetched
        upper.demoted_early = max(0, node.demoted_early - node.held[GPU])
        node.demoted_early -= upper.demoted_early
        if node.staged is not None:
            upper.staged, node.staged = node.staged.split(blocks)
        for owner, segment in node.owners.items():
            upper.owners[owner] = segment
            owner.nodes[upper] = None
        self.nodes += 1
        return upper

    def remove_leaf(self, node: Node) -> None:
        """Takes out a leaf of which no tier holds any block."""
        assert not node.children
        assert not any(node.held)
        assert node.refs == 0
        assert node.parent is not None
        for lease in node.leases:
            lease.node = node.parent
        self._shrink_leased(node, node.blocks)
        node.leases = NO_LEASES
        del node.parent.children[node.first_block()]
        for owner in node.owners:
            owner.nodes.pop(node, None)
        node.owners.clear()
        node.parent = None
        self.nodes -= 1

    def truncate(self, node: Node, blocks: int) -> None:
        """Shortens a node to its first `blocks` blocks. No tier may hold what is cut off."""
        self._shrink_leased(node, node.blocks - blocks)
        node.truncate(blocks)

    # --- leases ---

    def lease(self, node: Node, lease: BlockLease) -> None:
        """Extends a lease from a node's parent to it. No sequence adds blocks to the node any more."""
        if lease.tenant not in node.tenants:
            self.leased[lease.tenant] += node.blocks
        node.leases |= {lease}
        node.writer = None
        lease.node = node

    def end_leases(self, node: Node, leases: Set[BlockLease]) -> None:
        """Takes leases from a node."""
        before = node.tenants
        node.leases -= leases
        for tenant in before - node.tenants:
            self._shrink(tenant, node.blocks)

    def _shrink_leased(self, node: Node, blocks: int) -> None:
        for tenant in node.tenants:
            self._shrink(tenant, blocks)

    def _shrink(self, tenant: str, blocks: int) -> None:
        self.leased[tenant] -= blocks
        if not self.leased[tenant]:
            del self.leased[tenant]  # tenants are not counted for ever

    # --- which tier holds what ---

    def place(self, node: Node, tier: int, start: int, slots: Slots) -> None:
        """Notes that a tier holds a node's blocks from `start` on."""
        node.place(tier, start, slots)
        self._count(node, tier, len(slots))

    def unplace(self, node: Node, tier: int, start: int, stop: int) -> Slots:
        """Notes that a tier no longer holds a node's blocks from `start` to `stop`. Returns the slots that held them."""
        slots = node.remove(tier, start, stop)
        self._count(node, tier, -len(slots))
        return slots

    def _count(self, node: Node, tier: int, blocks: int) -> None:
        if blocks == 0:
            return
        self.held[tier] += blocks
        if node.refs == 0:
            self.evictable[tier] += blocks
        held = node.held
        if held[tier] in (0, blocks) and not (tier and any(held[:tier])):  # none any more, or none before
            assert node.parent is not None
            counts, change = node.parent.held_children, 1 if blocks > 0 else -1
            counts[tier] += change
            for slower in self._slower_than[tier]:
                if held[slower]:
                    break  # the node counts there in any case
                counts[slower] += change

    # --- use ---

    def lock(self, node: Node) -> None:
        """Keeps a node and its ancestors in place until `unlock`."""
        for part in lineage(node):
            self.lock_child(part)

    def lock_child(self, child: Node) -> None:
        """Extends a lock from a node to one of its children."""
        if child.refs == 0:
            evictable = self.evictable
            evictable[GPU] -= child.held[GPU]
            for tier in self._slower_than[GPU]:
                evictable[tier] -= child.held[tier]
        child.refs += 1

    def unlock(self, node: Node) -> list[Node]:
        """Gives a lock back. Returns the nodes that no running sequence uses any more, the deepest first."""
        unused, evictable, slower = [], self.evictable, self._slower_than[GPU]
        for part in lineage(node):
            assert part.refs > 0
            part.refs -= 1
            if part.refs == 0:
                unused.append(part)
                evictable[GPU] += part.held[GPU]
                for tier in slower:
                    evictable[tier] += part.held[tier]
        return unused

    def is_candidate(self, node: Node, tier: int) -> bool:
        """Whether a tier can lose blocks of a node without making others unreachable.

        That is true of the deepest node of a path of which this tier or a faster one holds blocks, and of copies of what a
        faster tier holds.
        """
        if node.refs or not node.held[tier]:
            return False
        return not node.held_children[tier] or (tier != GPU and node.copies(tier) > 0)

    def walk(self) -> Iterator[Node]:
        """Every node but the roots, parents before their children."""
        stack = [child for root in self._by_digest.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def lineage(node: Node) -> Iterator[Node]:
    """A node and its ancestors, without the root."""
    at: Node | None = node
    while at is not None and at.parent is not None:
        yield at
        at = at.parent
