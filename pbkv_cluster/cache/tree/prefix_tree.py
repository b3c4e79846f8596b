"""The prefix tree: a path-compressed radix tree over blocks of packed tokens.

The tree knows which blocks lie in which slots and who owns and uses them; it moves and frees nothing itself.
"""

from collections.abc import Iterator

from pbkv_cluster.cache.tree.node import ABSENT, GPU, HOST, LEVELS, Level, Node, Slots
from pbkv_cluster.core.blocks import KEY_BYTES, Namespace
from pbkv_cluster.core.token_trie import Walk, cut, walk
from pbkv_cluster.core.tokens import BLOCK_BYTES

Match = Walk[Node]


class PrefixTree:
    """One tree for each namespace. All counts are in blocks."""

    def __init__(self) -> None:
        self._roots: dict[Namespace, Node] = {}
        self.nodes = 0
        self.evictable = [0 for _ in LEVELS]  # blocks in each level that no running sequence uses
        self.held = [0 for _ in LEVELS]  # blocks in each level

    def root(self, namespace: Namespace) -> Node:
        """The root of a namespace's tree."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(b"", None, keys=namespace.digest())
        return root

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
        child = Node(tokens, parent, output)
        parent.children[child.first_block()] = child
        parent.writer = None
        self.nodes += 1
        self.place(child, GPU, 0, gpu_slots)
        return child

    def append(self, node: Node, tokens: bytes, gpu_slots: Slots) -> None:
        """Makes a leaf longer by blocks that the GPU holds."""
        node.append(tokens, gpu_slots)
        self._count(node, GPU, len(gpu_slots))

    def split(self, node: Node, blocks: int) -> Node:
        """Cuts a node in two behind its first `blocks` blocks. Returns the new upper part; `node` becomes the lower.

        The lower part stays the same object, so that locks and writers that end there stay right.
        """
        assert 0 < blocks < node.blocks
        parent = node.parent
        assert parent is not None
        upper = Node(node.tokens[: blocks * BLOCK_BYTES], parent, node.output, node.keys[: blocks * KEY_BYTES])
        cut(node, upper, parent.children)
        node.keys = node.keys[blocks * KEY_BYTES :]
        for level in LEVELS:
            places = node.slots[level]
            if places:
                upper.slots[level], node.slots[level] = places[:blocks], places[blocks:]
                upper.held[level] = blocks - upper.slots[level].count(ABSENT)
                node.held[level] -= upper.held[level]
                for part in (upper, node):
                    if not part.held[level]:
                        part.slots[level] = part.slots[level][:0]
        upper.gpu_children = 1 if node.held[GPU] else 0
        upper.refs = node.refs
        upper.last_access = node.last_access
        upper.entry = node.entry
        upper.uses = node.uses
        for owner, access in node.owners.items():
            upper.owners[owner] = access
            owner.nodes[upper] = None
        self.nodes += 1
        return upper

    def remove_leaf(self, node: Node) -> None:
        """Takes out a leaf that no level holds any block of."""
        assert not node.children
        assert not any(node.held)
        assert node.refs == 0
        assert node.parent is not None
        del node.parent.children[node.first_block()]
        for owner in node.owners:
            owner.nodes.pop(node, None)
        node.owners.clear()
        node.parent = None
        self.nodes -= 1

    # --- where blocks lie ---

    def place(self, node: Node, level: Level, start: int, slots: Slots) -> None:
        """Notes that `level` holds a node's blocks from `start` on."""
        node.place(level, start, slots)
        self._count(node, level, len(slots))

    def unplace(self, node: Node, level: Level, start: int, stop: int) -> Slots:
        """Notes that `level` no longer holds a node's blocks from `start` to `stop`. Returns the slots to be freed."""
        slots = node.remove(level, start, stop)
        self._count(node, level, -len(slots))
        return slots

    def _count(self, node: Node, level: Level, blocks: int) -> None:
        if blocks == 0:
            return
        self.held[level] += blocks
        if node.refs == 0:
            self.evictable[level] += blocks
        if level is GPU and node.held[GPU] in (0, blocks):  # it holds none any more, or none before
            assert node.parent is not None
            node.parent.gpu_children += 1 if blocks > 0 else -1

    # --- use ---

    def lock(self, node: Node) -> None:
        """Keeps a node and all above it in place until `unlock`."""
        for part in lineage(node):
            self.lock_child(part)

    def lock_child(self, child: Node) -> None:
        """Extends a lock from the parent to one of its children."""
        if child.refs == 0:
            evictable, held = self.evictable, child.held
            evictable[0] -= held[0]  # by number, not in a loop over levels: every step does this for each node of its path
            evictable[1] -= held[1]
        child.refs += 1

    def unlock(self, node: Node) -> list[Node]:
        """Gives a lock back. Returns the nodes that nobody uses any more, the deepest first."""
        freed, evictable = [], self.evictable
        for part in lineage(node):
            assert part.refs > 0
            part.refs -= 1
            if part.refs == 0:
                freed.append(part)
                held = part.held
                evictable[0] += held[0]
                evictable[1] += held[1]
        return freed

    def is_candidate(self, node: Node, level: Level) -> bool:
        """Whether blocks of the node can leave a level without leaving others unreachable.

        On the GPU that is true of the deepest node of a path that the GPU holds. In a lower level it is true of copies of what
        the GPU holds as well, and of the end of a path.
        """
        if node.refs or not node.held[level]:
            return False
        if level is GPU:
            return node.gpu_children == 0
        return not node.children or copies(node) > 0

    def walk(self) -> Iterator[Node]:
        """Every node below the roots, parents first."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check_integrity(self) -> None:
        """Raises:
        AssertionError: the tree contradicts itself.
        """
        from pbkv_cluster.cache.integrity import check_tree

        check_tree(self)


def lineage(node: Node) -> Iterator[Node]:
    """A node and all above it, up to but without the root."""
    at: Node | None = node
    while at is not None and at.parent is not None:
        yield at
        at = at.parent


def copies(node: Node) -> int:
    """Blocks that the node holds both on the GPU and in host memory."""
    doubled = node.slots[HOST][: node.held[GPU]]
    return len(doubled) - doubled.count(ABSENT)
