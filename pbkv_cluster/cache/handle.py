"""What the cache hands out: a sequence's hold on it, and what became of a prefetch."""

from typing import NamedTuple

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Node, Owner, new_slots
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.segment import Segment

# Of any sequence, where no record is kept.
UNRECORDED = [Segment(None, 0, 1 << 40, 0, "", False)]


class CacheHandle:
    """A running sequence's hold on the cache. `table` lists its GPU slots in order; the first `committed` are the tree's."""

    __slots__ = (
        "_at",
        "committed",
        "delivered",
        "node",
        "owner",
        "position",
        "prompt_blocks",
        "records",
        "segments",
        "table",
        "waits_for",
    )

    def __init__(
        self, owner: Owner, prompt_blocks: int, node: Node, position: int, segments: list[Segment], records: bool
    ) -> None:
        self.owner = owner
        self.prompt_blocks = prompt_blocks  # full blocks of the prompt; what follows is output
        self.node = node  # where the committed part ends; locked, with all above it
        self.position = position  # of the step in its workflow's history
        self.segments = segments  # of what the history knows of the sequence; some may have been cut since
        self.records = records  # it writes the history; else another lease on the same step does, or nobody
        self._at = 0
        self.table = new_slots()
        self.committed = 0
        self.waits_for: list[Transfer] = []  # that write slots of the table, and may be done by now
        self.delivered: dict[Tier, int] = {}  # tokens found when the lease was opened, by tier

    @property
    def ready(self) -> bool:
        """Whether the table's slots can be computed on: everything that was loaded has arrived."""
        self.waits_for = [transfer for transfer in self.waits_for if not transfer.done]
        return not self.waits_for

    @property
    def known(self) -> int:
        """Blocks that the segments hold."""
        return self.segments[-1].stop if self.segments else 0

    def segment(self, block: int) -> Segment:
        """The segment of a known block. Asked for with ever higher blocks."""
        while self.segments[self._at].stop <= block:
            self._at += 1
        segment = self.segments[self._at]
        while segment.start > block:  # another step of the workflow has cut it meanwhile
            assert segment.parent is not None
            segment = segment.parent
        return segment


class Prefetched(NamedTuple):
    """Tokens of a prompt."""

    loaded: int
    resident: int  # on the GPU now
