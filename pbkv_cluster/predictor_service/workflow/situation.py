"""What is known of a workflow at the moment of a forecast. It holds only the past: no expert sees more."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk

END = ""  # label of a workflow's end

RECENT = 12  # steps whose agents are kept
RECENT_CALL_SITES = 6


@dataclass(frozen=True, slots=True)
class Situation:
    """A workflow just after a step has started or finished. Agents are named by labels, see `experts/labels.py`."""

    agents: tuple[str, ...] = ()  # labels of the latest steps, at most RECENT, the latest last
    step: int = 0  # steps started so far
    count: int = 0  # of these, steps of the latest agent
    run: int = 0  # length of the run of that agent's steps that the latest step ends
    call_sites: tuple[str, ...] = ()  # of the latest steps, at most RECENT_CALL_SITES, the latest last; "" if unnamed
    pieces: Sequence[int] = ()  # of the latest prompt: those that other workflows of its workload have had too
    task: Sequence[int] = ()  # hashed words of the task
    words: Sequence[int] = ()  # hashed words of the latest output
    finished: bool = False  # the latest output is that of the latest step
    hidden: bytes = b""  # of the latest finished step: projected hidden state, little-endian float16; empty: unknown
    graph: StepGraph | None = None  # declared by the client
    walk: GraphWalk | None = None  # the workflow's place in that graph
    prompt_tokens: int = 0  # of the latest step
    previous_prompt_tokens: int = 0  # of the step before it; 0: there is none
    output_tokens: int = 0  # of the latest output; 0: there is none
    previous_words: Sequence[int] = ()  # hashed words of the output before the latest
    agent_prompt_tokens: int = 0  # of the latest agent's previous step; 0: there is none
    agent_output_tokens: int = 0  # of that step


@lru_cache(maxsize=8192)  # workflows of a workload take the same paths
def suffix_hashes(names: tuple[str, ...]) -> tuple[int, ...]:
    """Hashes, of 32 bits, of the last name, of the last two names, and so on up to all of them."""
    found, code = [], 0
    for name in reversed(names):
        code = crc32(name.encode() + b"\0", code)
        found.append(code)
    return tuple(found)
