"""Workflows as paths of blocks, and the records and logs that a worker would make of them."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

AGENTS = ("planner", "coder", "tester")
Path = tuple[int, ...]
"""One number a block."""


class Step(NamedTuple):
    """A step that reads a prompt and writes an output."""

    agent: str
    prompt: Path
    output: Path = ()

    @property
    def path(self) -> Path:
        return self.prompt + self.output


def packed(path: Sequence[int]) -> bytes:
    return b"".join(pack([block] * BLOCK_TOKENS) for block in path)


def record(steps: Sequence[Step], popularity: PrefixPopularity | None = None) -> WorkflowRecord:
    """The record of a workflow whose steps came one after the other, a second each."""
    made, seen = WorkflowRecord(), PrefixPopularity(1000) if popularity is None else popularity
    for number, step in enumerate(steps):
        position = made.begin(number, step.agent, packed(step.prompt), len(step.prompt), float(number), seen)
        if step.output:
            made.write(position, packed(step.output))
        made.end(position, number + 0.5)
    return made


@st.composite
def workflows(draw: st.DrawFn, most_steps: int = 8) -> list[Step]:
    """Steps that go on from earlier paths, part from them anywhere, and write what may be known."""
    found: list[Step] = []
    blocks = st.integers(0, 2)
    for _ in range(draw(st.integers(0, most_steps))):
        base = draw(st.sampled_from(found)).path if found else ()
        prompt = base[: draw(st.integers(0, len(base)))] + tuple(draw(st.lists(blocks, max_size=4)))
        found.append(Step(draw(st.sampled_from(AGENTS)), prompt, tuple(draw(st.lists(blocks, max_size=3)))))
    return found
