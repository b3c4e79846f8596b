"""Nodes of the prefix tree, the workflows that own them, the leases on them, and the slots that hold their blocks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from pbkv_cluster.cache.tree.staged import Staged
from pbkv_cluster.core.blocks import KEY_BYTES, BlockLabel, chain_keys
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

GPU = 0  # index of the GPU among the tiers of a cache, which are numbered from the fastest to the slowest
ABSENT = -1  # in place of a slot: the tier does not hold the block

# Slot numbers, 32 bits each. An array is sliced and joined at memory speed and needs no Python object per slot.
Slots: TypeAlias = "array[int]"


def new_slots(numbers: Iterable[int] = ()) -> Slots:
    return array("i", numbers)


NO_SLOTS = new_slots()  # shared: replaced, never extended
_ONE_ABSENT = new_slots((ABSENT,))


class Owner:
    """An active workflow, as the cache sees it."""

    __slots__ = (
        "active_at",
        "forecast",
        "forecast_at",
        "graph",
        "heard",
        "heard_at",
        "id",
        "nodes",
        "record",
        "remote",
        "remote_root",
        "running",
        "workload",
    )

    def __init__(self, workflow: str, record: WorkflowRecord | None = None) -> None:
        """Args:
        workflow: its id.
        record: the record that another cache keeps of it; None: its own.
        """
        self.id = workflow
        self.nodes: dict[Node, None] = {}  # a dict for its order: ties between values must not depend on memory addresses
        self.record = WorkflowRecord() if record is None else record
        self.forecast: Forecast | None = None
        self.workload = ""  # the latest that a forecast has named; empty: not known
        self.forecast_at = 0.0  # when it arrived, on this process's clock
        self.active_at = 0.0  # when its last step was admitted, here or elsewhere
        self.heard_at = 0.0  # when anything was heard of it last
        self.running = 0  # steps that run here
        self.remote: set[int] = set()  # numbers of the steps that run, or ran last, on other workers
        self.remote_root: Node | None = None  # of the blocks that they use
        self.heard = -1  # index of the latest event that was told of them
        self.graph: StepGraph | None = None  # declared by the client

    def segments(self) -> Iterator[Segment]:
        """The segment of each of its nodes, in order; one that lies in several nodes comes up for each."""
        for node in self.nodes:
            yield node.owners[self]


class BlockLease:
    """One tenant's lease on a node and all above it. It ranks them last for eviction, and holds nothing in place."""

    __slots__ = ("expires_at", "id", "node", "tenant", "workflow")

    def __init__(self, tenant: str, lease_id: str, workflow: str, node: Node, expires_at: float) -> None:
        self.tenant = tenant
        self.id = lease_id  # unique among the tenant's
        self.workflow = workflow  # with which it ends; empty: none
        self.node = node  # a root, once all blocks have left the cache
        self.expires_at = expires_at  # seconds, on the cache's clock


NO_LEASES: frozenset[BlockLease] = frozenset()


class Node:
    """A run of blocks that are always used together from the first on.

    `slots[tier]` says in which slot of a tier each block lies: an array with one entry per block, ABSENT where the tier does
    not hold the block, or an empty array when it holds none. The GPU always holds a leading run of a path; slower tiers may
    hold any blocks, and every block lies in some tier.
    """

    __slots__ = (
        "blocks",
        "children",
        "demoted_early",
        "entry",
        "held",
        "held_children",
        "keys",
        "last_access",
        "leases",
        "output",
        "owners",
        "parent",
        "prefetched",
        "prefetched_for",
        "refs",
        "sheltered",
        "slots",
        "staged",
        "tokens",
        "uses",
        "versions",
        "writer",
    )

    def __init__(self, tokens: bytes, parent: Node | None, tiers: int, output: bool = False, keys: bytes = b"") -> None:
        self.tokens = tokens
        self.keys = keys  # of its leading blocks, KEY_BYTES each; the others have not been asked for yet
        self.parent = parent
        self.blocks = len(tokens) // BLOCK_BYTES
        self.children: dict[bytes, Node] = {}  # by the tokens of their first block
        self.held_children = [0] * tiers  # children of which each tier, or a faster one, holds blocks
        self.slots: list[Slots] = [NO_SLOTS] * tiers
        self.held = [0] * tiers  # blocks that each tier holds
        self.prefetched = 0  # of the blocks that the GPU holds, how many of the last were prefetched and not used since
        self.prefetched_for = ""  # why, see `PrefetchLedger`
        self.leases: frozenset[BlockLease] = NO_LEASES  # that it lies within
        self.staged: Staged | None = None  # those of its blocks that were staged and not used since
        self.sheltered = False  # its blocks came to keep them for another worker of the node
        self.demoted_early = 0  # of the blocks that the GPU holds, how many were copied early, see `EarlyDemotionLedger`
        self.refs = 0  # running sequences whose path passes through this node
        self.owners: dict[Owner, Segment] = {}  # active workflows only, with the segment of each; none: retired
        self.entry: PrefixStat | None = None  # popularity of its prefix, where known
        self.last_access = 0.0
        self.uses = -math.inf  # see `tree/aged_uses`
        self.output = output  # generated, as opposed to read in a prompt
        self.writer: object = None  # the sequence that may still append in place
        self.versions = [0] * (2 * tiers)  # of its valid entry in each eviction queue: one per tier, then the LRU queue of each

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def tenants(self) -> set[str]:
        """Those who have leased it."""
        return {lease.tenant for lease in self.leases}

    @property
    def retired(self) -> bool:
        """No active workflow owns it."""
        return not self.owners

    def first_block(self) -> bytes:
        return self.tokens[:BLOCK_BYTES]

    def key(self, block: int) -> bytes:
        """The block key of one of its blocks."""
        start = block * KEY_BYTES
        if start >= len(self.keys):
            self._hash()
        return self.keys[start : start + KEY_BYTES]

    def last_key(self) -> bytes:
        """Of its last block; of a root, the namespace."""
        return self.key(self.blocks - 1) if self.blocks else self.keys

    def labels(self, blocks: Iterable[int]) -> Iterator[BlockLabel]:
        """What some of its blocks are, wherever their bytes lie."""
        root: Node = self
        while root.parent is not None:
            root = root.parent
        namespace = root.keys
        for block in blocks:
            key = self.key(block)
            parent = self.key(block - 1) if block else self.parent.keys[-KEY_BYTES:]  # type: ignore[union-attr]
            start = block * BLOCK_BYTES
            yield BlockLabel(namespace, parent, key, self.tokens[start : start + BLOCK_BYTES])

    def _hash(self) -> None:
        """Computes its missing keys, after those of its ancestors that they are chained to."""
        missing: list[Node] = []
        node: Node | None = self
        while node is not None and len(node.keys) < node.blocks * KEY_BYTES:
            missing.append(node)
            node = None if node.keys else node.parent
        for node in reversed(missing):
            above = node.keys or node.parent.keys  # type: ignore[union-attr]  # a root has its key from the start
            hashed = len(node.keys) // KEY_BYTES * BLOCK_BYTES
            node.keys += b"".join(chain_keys(above[-KEY_BYTES:], node.tokens[hashed:]))

    def place(self, tier: int, start: int, slots: Slots) -> None:
        """Notes that a tier holds the blocks from `start` on in `slots`; it must not hold any of them yet."""
        own = self.slots[tier]
        if own:
            own[start : start + len(slots)] = slots
        elif len(slots) == self.blocks:
            self.slots[tier] = slots[:]
        else:
            own = self.slots[tier] = _ONE_ABSENT * self.blocks
            own[start : start + len(slots)] = slots
        self.held[tier] += len(slots)

    def remove(self, tier: int, start: int, stop: int) -> Slots:
        """Forgets the slots in which a tier holds the blocks from `start` to `stop`. Returns these slots."""
        own = self.slots[tier]
        if not own:
            return new_slots()
        removed = own[start:stop]
        if self.held[tier] < self.blocks and ABSENT in removed:
            removed = new_slots(slot for slot in removed if slot != ABSENT)
        self.held[tier] -= len(removed)
        if self.held[tier] == 0:
            self.slots[tier] = NO_SLOTS
        else:
            own[start:stop] = _ONE_ABSENT * (stop - start)
        return removed

    def append(self, tokens: bytes, gpu_slots: Slots) -> None:
        """Extends the node by blocks that the GPU holds; it must hold all of the node's other blocks, too."""
        start = self.blocks
        added = len(tokens) // BLOCK_BYTES
        self.tokens += tokens
        self.blocks += added
        for own in self.slots:
            if own:
                own.extend(_ONE_ABSENT * added)
        self.place(GPU, start, gpu_slots)

    def truncate(self, blocks: int) -> None:
        """Shortens the node. No tier may hold what is cut off."""
        self.tokens = self.tokens[: blocks * BLOCK_BYTES]
        self.keys = self.keys[: blocks * KEY_BYTES]
        self.blocks = blocks
        self.writer = None
        for own in self.slots:
            del own[blocks:]

    def copies(self, tier: int) -> int:
        """Number of its blocks in a tier that a faster one holds as well."""
        if tier == GPU:
            return 0
        on_gpu = self.held[GPU]
        if self.held[tier] == self.blocks:
            number = on_gpu
        else:
            copies = self.slots[tier][:on_gpu]
            number = len(copies) - copies.count(ABSENT)
        if tier > 1:
            number += sum(self.is_copy(tier, block) for block in range(on_gpu, self.blocks))
        return number

    def is_copy(self, tier: int, block: int) -> bool:
        """Whether a tier and a faster one hold a block."""
        return self.holds(tier, block) and any(self.holds(faster, block) for faster in range(tier))

    def holds(self, tier: int, block: int) -> bool:
        """Whether a tier holds a block."""
        own = self.slots[tier]
        return bool(own) and own[block] != ABSENT

    def holds_before(self, tier: int, block: int) -> bool:
        """Whether a tier holds any of the blocks before one."""
        return any(slot != ABSENT for slot in self.slots[tier][:block])

    def last_copies(self, tier: int, blocks: Sequence[int]) -> Sequence[int]:
        """Those of a tier's blocks that no slower tier holds."""
        for slots in filter(None, self.slots[tier + 1 :]):
            blocks = [block for block in blocks if slots[block] == ABSENT]
        return blocks

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The blocks from `start` to `stop` by the fastest tier that holds them: runs of (tier, first, end)."""
        on_gpu = min(self.held[GPU], stop)
        if start < on_gpu:
            yield GPU, start, on_gpu
            start = on_gpu
        slower = [tier for tier in range(1, len(self.held)) if self.held[tier]]
        while start < stop:
            tier = next(tier for tier in slower if self.holds(tier, start))
            end = stop if len(slower) == 1 else start + 1
            while end < stop and tier == next(tier for tier in slower if self.holds(tier, end)):
                end += 1
            yield tier, start, end
            start = end
