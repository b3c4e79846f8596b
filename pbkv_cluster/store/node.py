"""What the prefix tree is made of: nodes, the workflows that own them, and where their blocks lie."""

from __future__ import annotations

from array import array
from enum import IntEnum

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.forecast import Forecast
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier

ABSENT = -1


class Level(IntEnum):
    """Tiers that this process holds blocks in, fastest first."""

    GPU = 0
    HOST = 1

    @property
    def tier(self) -> Tier:
        return (Tier.GPU, Tier.HOST)[self]


class Access:
    """How one workflow has used one node: its entry in the access vector `A_w(c)` of PBKV."""

    __slots__ = ("agents", "first_step", "last_step", "touches")

    def __init__(self, step: int) -> None:
        self.agents: dict[str, int] = {}  # agent to the last step at which it used the node
        self.first_step = step
        self.last_step = step
        self.touches = 0

    def copy(self) -> Access:
        other = Access(self.first_step)
        other.agents = dict(self.agents)
        other.last_step = self.last_step
        other.touches = self.touches
        return other


class Owner:
    """A workflow, as the cache sees it."""

    __slots__ = ("active_at", "forecast", "forecast_at", "id", "nodes")

    def __init__(self, workflow: str) -> None:
        self.id = workflow
        self.nodes: set[Node] = set()
        self.forecast: Forecast | None = None
        self.forecast_at = 0.0  # when it arrived, on this process's clock
        self.active_at = 0.0  # when the last step came


class Node:
    """A run of blocks that are always used together from the first on.

    `slots[level]` says where each block lies in that level's pool: an array with one entry a block, ABSENT where the level does
    not hold it, or empty when it holds none. On the GPU a node always holds a leading run of its blocks, and all blocks of
    every ancestor if it holds any.
    """

    __slots__ = (
        "blocks",
        "children",
        "held",
        "keys",
        "last_access",
        "output",
        "owners",
        "parent",
        "refs",
        "slots",
        "tokens",
        "versions",
        "writer",
    )

    def __init__(self, tokens: bytes, keys: bytes, parent: Node | None, output: bool = False) -> None:
        self.tokens = tokens
        self.keys = keys  # block keys, KEY_BYTES each
        self.parent = parent
        self.blocks = len(tokens) // BLOCK_BYTES
        self.children: dict[bytes, Node] = {}  # by the tokens of their first block
        self.slots: list[array[int]] = [array("i") for _ in Level]
        self.held = [0 for _ in Level]  # blocks that each level holds
        self.refs = 0  # running sequences whose path goes through here
        self.owners: dict[Owner, Access] = {}  # active workflows only: none left means retired
        self.last_access = 0.0
        self.output = output  # generated, as opposed to read in a prompt
        self.writer: object = None  # the sequence that may still append in place
        self.versions = [0 for _ in Level]  # of the valid entry in each level's eviction queue

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
        return self.keys[block * KEY_BYTES : (block + 1) * KEY_BYTES]

    def last_key(self) -> bytes:
        """The key that the first block of a child is chained to."""
        return self.keys[-KEY_BYTES:]

    def place(self, level: Level, start: int, slots: list[int]) -> None:
        """Notes that `level` holds the blocks from `start` on in `slots`; it must not hold any of them yet."""
        places = self.slots[level]
        if not places:
            places = self.slots[level] = array("i", [ABSENT]) * self.blocks
        places[start : start + len(slots)] = array("i", slots)
        self.held[level] += len(slots)

    def remove(self, level: Level, start: int, stop: int) -> list[int]:
        """Forgets what `level` holds of the blocks from `start` to `stop`. Returns the slots, to be freed."""
        places = self.slots[level]
        if not places:
            return []
        gone = [slot for slot in places[start:stop] if slot != ABSENT]
        self.held[level] -= len(gone)
        if self.held[level] == 0:
            self.slots[level] = array("i")
        else:
            places[start:stop] = array("i", [ABSENT]) * (stop - start)
        return gone

    def append(self, tokens: bytes, keys: bytes, gpu_slots: list[int]) -> None:
        """Makes the node longer by blocks that the GPU holds, as it does all before them."""
        start = self.blocks
        added = len(tokens) // BLOCK_BYTES
        self.tokens += tokens
        self.keys += keys
        self.blocks += added
        for places in self.slots:
            if places:
                places.extend([ABSENT] * added)
        self.place(Level.GPU, start, gpu_slots)

    def truncate(self, blocks: int) -> None:
        """Makes the node shorter. No level may hold what is cut off."""
        self.tokens = self.tokens[: blocks * BLOCK_BYTES]
        self.keys = self.keys[: blocks * KEY_BYTES]
        self.blocks = blocks
        self.writer = None
        for places in self.slots:
            del places[blocks:]
