"""What is known of a workflow at the moment when it is to be forecast. Everything in it has happened: no expert sees more."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk

END = ""  # the label of a workflow's end

RECENT = 12  # steps whose agents are kept
RECENT_SITES = 6  # and call sites


@dataclass(frozen=True, slots=True)
class Situation:
    """A workflow behind the beginning of a step, or behind its end. Agents are named by labels, see `labels.py`."""

    agents: tuple[str, ...] = ()  # labels of the latest steps, at most RECENT, the latest last
    step: int = 0  # steps that have begun
    count: int = 0  # of them, those of the latest agent
    run: int = 0  # of them, those at the end that are all of the latest agent
    sites: tuple[str, ...] = ()  # call sites of the latest steps, at most RECENT_SITES, the latest last; "" if unnamed
    pieces: Sequence[int] = ()  # of the latest step's prompt: those that other workflows of its workload have had too
    task: Sequence[int] = ()  # hashed words of the task
    words: Sequence[int] = ()  # hashed words of the latest output there is
    finished: bool = False  # that is the output of the latest step
    hidden: bytes = b""  # of the latest finished step: projected hidden state, little-endian float16; empty: not known
    graph: StepGraph | None = None  # that the client declared
    walk: GraphWalk | None = None  # where the workflow stands in it
    prompt_tokens: int = 0  # of the latest step
    former_prompt_tokens: int = 0  # of the step before it; 0: there is none
    output_tokens: int = 0  # of the latest output there is; 0: there is none
    earlier: Sequence[int] = ()  # hashed words of the output before that of `words`
    own_prompt_tokens: int = 0  # of the latest agent's step before the latest; 0: there is none
    own_output_tokens: int = 0  # of that step


@lru_cache(maxsize=8192)  # workflows of a workload go the same ways
def hashes_of_latest(names: tuple[str, ...]) -> tuple[int, ...]:
    """Hashes, of 32 bits, of the last name, of the last two, and so on up to all that are given."""
    found, code = [], 0
    for name in reversed(names):
        code = crc32(name.encode() + b"\0", code)
        found.append(code)
    return tuple(found)
