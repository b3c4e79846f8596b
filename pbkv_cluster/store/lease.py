"""What the cache hands out: a sequence's hold on it, and what became of a prefetch."""

from typing import NamedTuple

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.node import Node, Owner, new_slots


class Lease:
    """A running sequence's hold on the cache. `table` lists its GPU slots in order; the first `committed` are the tree's."""

    __slots__ = ("agent", "committed", "delivered", "node", "owner", "prompt_blocks", "step", "table")

    def __init__(self, owner: Owner, agent: str, step: int, prompt_blocks: int, node: Node) -> None:
        self.owner = owner
        self.agent = agent
        self.step = step
        self.prompt_blocks = prompt_blocks  # full blocks of the prompt; what follows is output
        self.node = node  # where the committed part ends; locked, with all above it
        self.table = new_slots()
        self.committed = 0
        self.delivered: dict[Tier, int] = {}  # tokens found when the lease was opened, by tier


class Prefetched(NamedTuple):
    """Tokens of a prompt."""

    loaded: int
    resident: int  # on the GPU now
