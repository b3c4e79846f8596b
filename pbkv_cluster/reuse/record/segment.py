"""What a workflow's record is made of: runs of blocks that it has always used together."""

from __future__ import annotations

from pbkv_cluster.core.access_log import INSIDE, LAGS, NO_ATTACH, OUTPUT_END, PROMPT_END
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat


class Segment:
    """A run of blocks that a workflow has always used together."""

    __slots__ = (
        "agents",
        "blocks",
        "born",
        "branches",
        "children",
        "entry",
        "first_agent",
        "key",
        "last_agent",
        "mask",
        "origin",
        "output",
        "parent",
        "prompted",
        "replies",
        "sharing",
        "start",
        "tokens",
        "touched",
    )

    def __init__(self, parent: Segment | None, start: int, blocks: int, step: int, agent: str, output: bool) -> None:
        self.parent = parent
        self.start = start  # blocks above it
        self.blocks = blocks
        self.output = output  # generated, and in no prompt since
        self.prompted = False  # a prompt ends at its end
        self.replies = 0  # steps that have ended at its end
        self.branches = 0  # segments that follow it
        self.born = step  # when this object began to stand for its blocks; before, `origin` did
        self.origin: Segment | None = None
        self.touched = [step]  # positions of the steps that used it
        self.mask = 1  # bit i: used i steps before the last time
        self.first_agent = self.last_agent = agent
        self.agents = {agent: step}  # to the last step at which each used it
        self.sharing = 0  # see Run
        self.key = 0
        self.entry: PrefixStat | None = None
        self.tokens = b""  # of its blocks; a learner has none
        self.children: dict[bytes, Segment] = {}  # by the tokens of their first block

    @property
    def stop(self) -> int:
        """Blocks down to its end."""
        return self.start + self.blocks

    @property
    def ends(self) -> int:
        """What ends at its end."""
        return OUTPUT_END if self.replies else PROMPT_END if self.prompted else INSIDE

    def touch(self, step: int, agent: str, output: bool) -> None:
        """A step uses it."""
        last = self.touched[-1]
        if step > last:
            self.mask = (self.mask << min(step - last, 16)) & 0xFFFF | 1
            self.touched.append(step)
            self.last_agent = agent
        self.agents[agent] = max(step, self.agents.get(agent, step))
        self.output &= output

    def split(self, blocks: int, step: int) -> Segment:
        """Cuts it behind its first `blocks` blocks. Returns the new upper part; the lower stays the same object."""
        upper = Segment(self.parent, self.start, blocks, step, self.first_agent, self.output)
        upper.origin = self
        upper.touched, upper.mask = list(self.touched), self.mask
        upper.last_agent, upper.agents = self.last_agent, dict(self.agents)
        upper.sharing, upper.key, upper.entry = self.sharing, self.key, self.entry
        upper.branches = 1
        self.parent = upper
        self.start += blocks
        self.blocks -= blocks
        if self.tokens:
            cut = blocks * BLOCK_BYTES
            upper.tokens, self.tokens = self.tokens[:cut], self.tokens[cut:]
            upper.children[self.tokens[:BLOCK_BYTES]] = self
        return upper


def attach_symbol(segment: Segment | None, step: int) -> int:
    """What the point at which a prompt leaves the known looks like: how many steps ago it was used (1, 2, 3, more), and
    whether a reply ended there, a prompt did, or neither. In [0, SYMBOLS)."""
    if segment is None:
        return NO_ATTACH
    lag = min(max(step - segment.touched[-1], 1), LAGS)
    return (lag - 1) * 3 + segment.ends


def lineage(segment: Segment | None) -> list[Segment]:
    """A segment and all above it, the first of the path first."""
    path: list[Segment] = []
    while segment is not None:
        path.append(segment)
        segment = segment.parent
    path.reverse()
    return path
