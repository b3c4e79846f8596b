"""What a step tells of the workload of its workflow."""

import re
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

STEPS = 3  # first steps of a workflow by which it is recognised

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class StepEvidence(NamedTuple):
    """Evidence of one step."""

    position: int  # from 0, or -1: none of the first steps
    agent: str
    features: tuple[int, ...]  # hashes: pieces of the prompt, words of the agent's name, the call site


def evidence_of(step: int, agent: str, call_site: str, pieces: tuple[int, ...]) -> StepEvidence:
    """The evidence of a step.

    Args:
        step: its number, from 0.
        agent: its name.
        call_site: where it was called, "" if the client did not say.
        pieces: of its prompt.
    """
    return StepEvidence(step if step < STEPS else -1, agent, (*set(pieces), *_name_features(agent, call_site)))


@lru_cache(maxsize=4096)
def _name_features(agent: str, call_site: str) -> tuple[int, ...]:
    words = {crc32(b"word\0" + word.lower().encode()) for word in _WORD.findall(agent)}
    return (*sorted(words), *([crc32(b"site\0" + call_site.encode())] if call_site else ()))
