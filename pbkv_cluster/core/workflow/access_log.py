"""Access logs: what a workflow that has ended read and wrote in one worker's cache, step by step, in blocks and without tokens.

A worker writes them, the wire carries them, and the predictor learns from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Attach symbols tell at which point a prompt leaves what its workflow knew: (lag - 1) * 3 + what ends there, or NO_ATTACH.
LAGS = 4  # values of the lag, the steps since the point was last used: 1, 2, 3, or more
INSIDE, PROMPT_END, OUTPUT_END = range(3)  # what ends at the point
NO_ATTACH = 3 * LAGS  # nothing of the prompt was known
SYMBOLS = NO_ATTACH + 1


class Run(NamedTuple):
    """Consecutive blocks that a step adds to its workflow's record, all of which equally many other workflows have read."""

    blocks: int
    sharing: int = 0  # workflows that had read them when the step began: 0 none, 1 one or two, 2 more
    key: int = 0  # hash of their content, if more than two share them


@dataclass(slots=True)
class StepLog:
    """One step, as a learner needs it. Positions count the steps of the log. Times are seconds on the worker's clock."""

    number: int  # as the gateway counts
    agent: str
    came_from: int  # position of the latest step whose path its prompt follows; -1: it follows none
    follows: int  # number of blocks for which it does
    began_at: float
    runs: list[Run] = field(default_factory=list)  # what the prompt adds after them
    symbol: int = NO_ATTACH  # attach symbol of the prompt
    output_blocks: int = 0
    ended_at: float = -1.0  # below 0: it still runs
    repeats: int = -1  # position of an earlier step whose path its output goes along; -1: none
    repeats_to: int = 0  # number of blocks, from the start of the path, to which it does

    @property
    def prompt_blocks(self) -> int:
        """Full blocks of the prompt."""
        return self.follows + sum(run.blocks for run in self.runs)


class AccessLog(NamedTuple):
    """What a workflow that has ended read and wrote in one cache."""

    workflow: str
    steps: Sequence[StepLog]
    workload: str = ""  # as in the workflow's latest forecast; empty: not known
