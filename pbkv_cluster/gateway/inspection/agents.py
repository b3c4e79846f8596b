"""How well the prompts of each agent are reused, and where the prompts of two of its workflows part."""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from statistics import median_low
from typing import NamedTuple

import numpy as np

from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.usage import HitMeter, Usage

_CALL_SITES = 1000  # that are kept; beyond it the one that has been silent for longest is forgotten
_PROMPT_BYTES = 256 << 10  # of a prompt that are kept to be compared: its beginning
_PAIRS = 31  # latest pairs of workflows whose prompts are compared


class CallSite(NamedTuple):
    """A prompt template of an agent, as far as clients tell them apart."""

    workload: str
    agent: str
    call_site: str


@dataclass(slots=True)
class AgentStats:
    """What is known of one call site."""

    meter: HitMeter = field(default_factory=HitMeter)
    partings: deque[int] = field(default_factory=lambda: deque(maxlen=_PAIRS))  # tokens that two prompts had in common
    workflow: str = ""  # whose prompt was seen last
    prompt: bytes = b""  # its beginning, packed

    @property
    def parting_tokens(self) -> int:
        """Median of the tokens that the prompts of two workflows have in common from the start; 0: nothing is known."""
        return median_low(self.partings) if self.partings else 0


class Agents:
    """Sums over finished steps, by call site."""

    def __init__(self) -> None:
        self._sites: OrderedDict[CallSite, AgentStats] = OrderedDict()  # silent for longest first

    def add(self, site: CallSite, workflow: str, prompt: bytes, usage: Usage) -> None:
        """Counts a finished step.

        Args:
            site: that called the model.
            workflow: its id. Only prompts of different workflows are compared: within one, each continues the last.
            prompt: packed token ids.
            usage: of the step.
        """
        stats = self._sites.setdefault(site, AgentStats())
        self._sites.move_to_end(site)
        stats.meter.add(usage)
        if workflow != stats.workflow:
            beginning = prompt[:_PROMPT_BYTES]
            if stats.workflow:
                stats.partings.append(common_tokens(stats.prompt, beginning))
            stats.workflow, stats.prompt = workflow, beginning
        while len(self._sites) > _CALL_SITES:
            self._sites.popitem(last=False)

    def first(self, limit: int, workload: str = "") -> list[tuple[CallSite, AgentStats]]:
        """The call sites with most tokens computed again, which a cache could have saved.

        Args:
            limit: of call sites.
            workload: only its own; empty: all.
        """
        sites = (item for item in self._sites.items() if workload in ("", item[0].workload))
        return heapq.nlargest(limit, sites, key=lambda item: (item[1].meter.recomputed_tokens, item[1].meter.prompt_tokens))


def common_tokens(first: bytes, second: bytes) -> int:
    """Tokens that two packed prompts have in common from the start."""
    size = min(len(first), len(second)) // TOKEN_BYTES * TOKEN_BYTES
    if first[:size] == second[:size]:
        return size // TOKEN_BYTES
    return int(np.argmax(np.frombuffer(first[:size], "<i4") != np.frombuffer(second[:size], "<i4")))
