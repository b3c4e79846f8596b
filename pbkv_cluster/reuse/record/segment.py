"""What a workflow's record is made of: runs of blocks that the workflow has always used together."""

from __future__ import annotations

from pbkv_cluster.core.workflow.access_log import INSIDE, LAGS, NO_ATTACH, OUTPUT_END, PROMPT_END
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat


class Segment:
    """A run of blocks that a workflow has always used together: a node of a trie, see `core/token_trie.py`."""

    __slots__ = (
        "agents",
        "blocks",
        "born",
        "branches",
        "children",
        "first_agent",
        "key",
        "last_agent",
        "mask",
        "origin",
        "output",
        "parent",
        "prefix_stat",
        "prompted",
        "replies",
        "sharing",
        "start",
        "tokens",
        "used_at",
    )

    def __init__(self, parent: Segment | None, start: int, blocks: int, step: int, agent: str, output: bool) -> None:
        self.parent = parent
        self.start = start  # blocks above it
        self.blocks = blocks
        self.output = output  # generated, and in no prompt since
        self.prompted = False  # a prompt ends at its end
        self.replies = 0  # steps that have ended at its end
        self.branches = 0  # segments that follow it
        self.born = step  # position of the step since which this object stands for its blocks
        self.origin: Segment | None = None  # the object that stood for them before
        self.used_at = [step]  # positions of the steps that used it
        self.mask = 1  # bit i: used i steps before the last use
        self.first_agent = self.last_agent = agent
        self.agents = {agent: step}  # the last step at which each agent used it
        self.sharing = 0  # see Run
        self.key = 0  # see Run
        self.prefix_stat: PrefixStat | None = None  # how widely its blocks are shared; None: no prompt had them
        self.tokens = b""  # of its blocks; unknown in a record that was replayed from a log
        self.children: dict[bytes, Segment] = {}  # by the tokens of their first block, as far as tokens are known

    @property
    def stop(self) -> int:
        """Blocks down to its end."""
        return self.start + self.blocks

    @property
    def ends(self) -> int:
        """What ends at its end: a reply, a prompt or neither."""
        return OUTPUT_END if self.replies else PROMPT_END if self.prompted else INSIDE

    def touch(self, step: int, agent: str, output: bool) -> None:
        """A step uses it."""
        last = self.used_at[-1]
        if step > last:
            self.mask = (self.mask << min(step - last, 16)) & 0xFFFF | 1
            self.used_at.append(step)
            self.last_agent = agent
        self.agents[agent] = max(step, self.agents.get(agent, step))
        self.output &= output

    def head(self, blocks: int, step: int) -> Segment:
        """A new segment for its first blocks, used as it was. It is not yet part of the trie."""
        upper = Segment(self.parent, self.start, blocks, step, self.first_agent, self.output)
        upper.origin = self
        upper.used_at, upper.mask = list(self.used_at), self.mask
        upper.last_agent, upper.agents = self.last_agent, dict(self.agents)
        upper.sharing, upper.key, upper.prefix_stat = self.sharing, self.key, self.prefix_stat
        upper.branches = 1
        return upper


def attach_symbol(segment: Segment | None, step: int) -> int:
    """The attach symbol of a prompt: how many steps ago the point was used at which it leaves what was known (1, 2, 3, more),
    and whether a reply ended there, a prompt, or neither. In [0, SYMBOLS)."""
    if segment is None:
        return NO_ATTACH
    lag = min(max(step - segment.used_at[-1], 1), LAGS)
    return (lag - 1) * 3 + segment.ends


def lineage(segment: Segment | None) -> list[Segment]:
    """A segment and all above it, the top one first."""
    path: list[Segment] = []
    while segment is not None:
        path.append(segment)
        segment = segment.parent
    path.reverse()
    return path
