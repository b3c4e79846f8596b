"""What the prefix tree is made of: nodes, the workflows that own them, and where their blocks lie."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeAlias

from pbkv_cluster.core.blocks import KEY_BYTES, chain_keys
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

ABSENT = -1

# Numbers of slots, 32 bits each. An array is sliced and joined at memory speed, and holds no Python object a slot.
Slots: TypeAlias = "array[int]"


def new_slots(numbers: Iterable[int] = ()) -> Slots:
    return array("i", numbers)


_NO_SLOTS = new_slots()
_NONE_HELD = new_slots((ABSENT,))


class Level(IntEnum):
    """Tiers that this process holds blocks in, fastest first."""

    GPU = 0
    HOST = 1

    @property
    def tier(self) -> Tier:
        return (Tier.GPU, Tier.HOST)[self]


# An attribute of an enum is slow to read in Python 3.11, and a loop over one slower: hot paths take these.
GPU, HOST = LEVELS = tuple(Level)

# Eviction queues: one a level, and perhaps one more for the GPU in the order of LRU.
LRU = len(LEVELS)
QUEUES = LRU + 1


def aged_uses(uses: float, now: float, half_life: float) -> float:
    """A count of uses after one more, each use counting half as much every `half_life` seconds.

    The count is kept as log2 of the sum over uses of 2^(time of the use / half-life): its order among nodes is that of the aged
    counts at any time, and it changes only with a use. -inf before the first.
    """
    use = now / half_life
    more, less = (uses, use) if uses > use else (use, uses)
    return more + math.log2(1.0 + 2.0 ** (less - more))


class Owner:
    """A workflow, as the cache sees it."""

    __slots__ = ("active_at", "forecast", "forecast_at", "graph", "id", "nodes", "record")

    def __init__(self, workflow: str, record: WorkflowRecord | None = None) -> None:
        """Args:
        workflow: its id.
        record: the record that another cache keeps of it; None: its own.
        """
        self.id = workflow
        self.nodes: dict[Node, None] = {}  # in order: ties between their values must not fall by memory addresses
        self.record = WorkflowRecord() if record is None else record
        self.forecast: Forecast | None = None
        self.forecast_at = 0.0  # when it arrived, on this process's clock
        self.active_at = 0.0  # when the last step came
        self.graph: StepGraph | None = None  # that the client has declared

    def segments(self) -> Iterator[Segment]:
        """The segment of each of its nodes, in order; one that lies in several nodes comes up for each."""
        for node in self.nodes:
            yield node.owners[self]


class Node:
    """A run of blocks that are always used together from the first on.

    `slots[level]` says where each block lies in that level's pool: an array with one entry a block, ABSENT where the level does
    not hold it, or empty when it holds none. On the GPU a node always holds a leading run of its blocks, and all blocks of
    every ancestor if it holds any.
    """

    __slots__ = (
        "blocks",
        "children",
        "entry",
        "gpu_children",
        "held",
        "keys",
        "last_access",
        "output",
        "owners",
        "parent",
        "refs",
        "slots",
        "tokens",
        "uses",
        "versions",
        "writer",
    )

    def __init__(self, tokens: bytes, parent: Node | None, output: bool = False, keys: bytes = b"") -> None:
        self.tokens = tokens
        self.keys = keys  # of its first blocks, KEY_BYTES each; those that nobody has asked for yet are missing
        self.parent = parent
        self.blocks = len(tokens) // BLOCK_BYTES
        self.children: dict[bytes, Node] = {}  # by the tokens of their first block
        self.gpu_children = 0  # children that the GPU holds blocks of
        self.slots: list[Slots] = [_NO_SLOTS] * len(LEVELS)  # an empty one may be shared: it is replaced, never filled
        self.held = [0] * len(LEVELS)  # blocks that each level holds
        self.refs = 0  # running sequences whose path goes through here
        self.owners: dict[Owner, Segment] = {}  # active workflows only, each with what it knows of it; none left: retired
        self.entry: PrefixStat | None = None  # what the catalog knows of it
        self.last_access = 0.0
        self.uses = -math.inf  # see `aged_uses`
        self.output = output  # generated, as opposed to read in a prompt
        self.writer: object = None  # the sequence that may still append in place
        self.versions = [0] * QUEUES  # of the valid entry in each eviction queue

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def retired(self) -> bool:
        """No active workflow holds it."""
        return not self.owners

    def first_block(self) -> bytes:
        return self.tokens[:BLOCK_BYTES]

    def key(self, block: int) -> bytes:
        """The key of one of its blocks."""
        start = block * KEY_BYTES
        if start >= len(self.keys):
            self._hash()
        return self.keys[start : start + KEY_BYTES]

    def _hash(self) -> None:
        """Computes its keys, and first those above it that they are chained to."""
        missing: list[Node] = []
        node: Node | None = self
        while node is not None and len(node.keys) < node.blocks * KEY_BYTES:
            missing.append(node)
            node = None if node.keys else node.parent
        for node in reversed(missing):
            above = node.keys or node.parent.keys  # type: ignore[union-attr]  # a root has its key from the start
            hashed = len(node.keys) // KEY_BYTES * BLOCK_BYTES
            node.keys += b"".join(chain_keys(above[-KEY_BYTES:], node.tokens[hashed:]))

    def place(self, level: Level, start: int, slots: Slots) -> None:
        """Notes that `level` holds the blocks from `start` on in `slots`; it must not hold any of them yet."""
        places = self.slots[level]
        if not places:
            places = self.slots[level] = _NONE_HELD * self.blocks
        places[start : start + len(slots)] = slots
        self.held[level] += len(slots)

    def remove(self, level: Level, start: int, stop: int) -> Slots:
        """Forgets what `level` holds of the blocks from `start` to `stop`. Returns the slots, to be freed."""
        places = self.slots[level]
        if not places:
            return new_slots()
        gone = places[start:stop]
        if ABSENT in gone:
            gone = new_slots(slot for slot in gone if slot != ABSENT)
        self.held[level] -= len(gone)
        if self.held[level] == 0:
            self.slots[level] = _NO_SLOTS
        else:
            places[start:stop] = _NONE_HELD * (stop - start)
        return gone

    def append(self, tokens: bytes, gpu_slots: Slots) -> None:
        """Makes the node longer by blocks that the GPU holds, as it does all before them."""
        start = self.blocks
        added = len(tokens) // BLOCK_BYTES
        self.tokens += tokens
        self.blocks += added
        for places in self.slots:
            if places:
                places.extend(_NONE_HELD * added)
        self.place(GPU, start, gpu_slots)

    def truncate(self, blocks: int) -> None:
        """Makes the node shorter. No level may hold what is cut off."""
        self.tokens = self.tokens[: blocks * BLOCK_BYTES]
        self.keys = self.keys[: blocks * KEY_BYTES]
        self.blocks = blocks
        self.writer = None
        for places in self.slots:
            del places[blocks:]
