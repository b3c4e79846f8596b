"""Access logs: what a workflow that has ended read and wrote in one worker's cache, step by step, in blocks and without tokens.

A worker writes them, the wire carries them, and the predictor learns from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# How a prompt leaves what its workflow knew: an attach symbol is (lag - 1) * 3 + what ends there, or NO_ATTACH.
LAGS = 4  # steps since the point was last used: 1, 2, 3, or more
INSIDE, PROMPT_END, OUTPUT_END = range(3)  # what ends at the point
NO_ATTACH = 3 * LAGS
SYMBOLS = NO_ATTACH + 1


class Run(NamedTuple):
    """Consecutive blocks that a step adds to its workflow's record, all known to equally many other workflows."""

    blocks: int
    sharing: int = 0  # workflows that had them when the step came: 0 none, 1 one or two, 2 more
    key: int = 0  # of their content, where many share them


@dataclass(slots=True)
class StepLog:
    """One step, as a learner needs it. Times are seconds on the worker's clock."""

    number: int  # as the gateway counts
    agent: str
    came_from: int  # position of the latest step whose path its prompt follows first; -1: it follows none
    follows: int  # for how many blocks
    began_at: float
    runs: list[Run] = field(default_factory=list)  # what the prompt adds
    symbol: int = NO_ATTACH
    output_blocks: int = 0
    ended_at: float = -1.0  # below 0: it has not
    repeats: int = -1  # position of a step whose path its output went along first; -1: none
    repeats_to: int = 0  # down to how many blocks from the start

    @property
    def prompt_blocks(self) -> int:
        return self.follows + sum(run.blocks for run in self.runs)


class AccessLog(NamedTuple):
    """What a workflow that has ended read and wrote in one cache."""

    workflow: str
    steps: Sequence[StepLog]
