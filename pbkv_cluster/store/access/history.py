"""What one workflow has read and written so far, cut where its own prompts have parted.

The record does not depend on what the cache still holds: a block that was evicted and computed anew has the history that it
had. It is built step by step, from nothing that only a later step shows, and its log tells a learner all that was known when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from pbkv_cluster.core.tokens import BLOCK_BYTES, common_blocks
from pbkv_cluster.store.access.catalog import OFFSETS, Catalog, Entry

LAGS = 4
INSIDE, PROMPT_END, OUTPUT_END = range(3)
NO_ATTACH = 3 * LAGS
SYMBOLS = NO_ATTACH + 1


class Run(NamedTuple):
    """Blocks that a step adds to its workflow's record, alike in who had them before."""

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


class Segment:
    """A run of blocks that a workflow has always used together."""

    __slots__ = (
        "agents",
        "blocks",
        "born",
        "branches",
        "children",
        "ends",
        "entry",
        "first_agent",
        "key",
        "last_agent",
        "mask",
        "origin",
        "output",
        "parent",
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
        self.ends = INSIDE  # what ends at its end
        self.branches = 0  # segments that follow it
        self.born = step  # when this object began to stand for its blocks; before, `origin` did
        self.origin: Segment | None = None
        self.touched = [step]  # positions of the steps that used it
        self.mask = 1  # bit i: used i steps before the last time
        self.first_agent = self.last_agent = agent
        self.agents = {agent: step}  # to the last step at which each used it
        self.sharing = 0  # see Run
        self.key = 0
        self.entry: Entry | None = None
        self.tokens = b""  # of its blocks; a learner has none
        self.children: dict[bytes, Segment] = {}  # by the tokens of their first block

    @property
    def stop(self) -> int:
        """Blocks down to its end."""
        return self.start + self.blocks

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


class History:
    """One workflow's steps and segments. Steps count by position, in the order in which they began here."""

    def __init__(self) -> None:
        self.steps: list[StepLog] = []
        self.segments: list[Segment] = []
        self.ends: list[Segment | None] = []  # where each step's path ends
        self.last_step: dict[str, int] = {}  # of each agent
        self._roots: dict[bytes, Segment] = {}  # by the tokens of their first block
        self._positions: dict[int, int] = {}  # by number

    # --- as it happens ---

    def begin(self, number: int, agent: str, prompt: bytes, now: float, catalog: Catalog) -> int:
        """A step comes. Returns its position.

        Args:
            number: as the gateway counts; a step that comes again after it was preempted is the same one.
            agent: who calls.
            prompt: its full blocks.
            now: seconds.
            sharing: what others had of the prompt's leading part, in order.
        """
        at, follows = self._find(prompt)
        blocks = len(prompt) // BLOCK_BYTES
        again = self._positions.get(number)
        if again is not None and follows == blocks and (at is None or at in self.path(again)):
            return again
        source = at.touched[-1] if at is not None else -1
        if not self.steps:
            catalog.arrivals += 1
        entries = catalog.read(prompt)
        log = StepLog(number, agent, source, follows, now, list(_added(follows, blocks, [_run(e) for e in entries])))
        position = self._enter(log, at, prompt)
        segments = self.path(position)
        index = start = 0
        for entry in entries:
            if start >= follows or not entry.workflows:
                while segments[index].stop <= start:
                    index += 1
                above = segments[index].parent
                offset = position - (above.touched[0] if above is not None else 0)
                entry.first[min(offset, OFFSETS - 1)] += 1
                entry.workflows += 1
                entry.step_sum += position
                entry.agent = agent
            start += entry.blocks
            while index < len(segments) and segments[index].stop <= start:
                segments[index].entry = entry
                index += 1
        return position

    def write(self, position: int, tokens: bytes) -> list[Segment]:
        """A step has generated more blocks. Returns the segments that hold them, in order."""
        found: list[Segment] = []
        log, at = self.steps[position], 0
        while at < len(tokens):
            end = self.ends[position]
            children = self._roots if end is None else end.children
            child = children.get(tokens[at : at + BLOCK_BYTES])
            if child is None:
                blocks = (len(tokens) - at) // BLOCK_BYTES
                found.append(self._generate(position, blocks, tokens[at:]))
                break
            same = common_blocks(child.tokens, tokens, at, len(tokens))
            if same < child.blocks:
                child = self._split(child, same, position)
            child.touch(position, log.agent, True)
            self.ends[position] = child
            log.output_blocks += child.blocks
            at += child.blocks * BLOCK_BYTES
            found.append(child)
        return found

    def end(self, position: int, now: float) -> None:
        """A step has ended, or was preempted."""
        self.steps[position].ended_at = now
        end = self.ends[position]
        if end is not None:
            end.ends = OUTPUT_END

    def path(self, position: int) -> list[Segment]:
        """The segments of a step, in order."""
        return lineage(self.ends[position])

    # --- from a log ---

    def replay(self, log: StepLog) -> int:
        """A step of a log, without its tokens, from its beginning to its end. Returns its position.

        Raises:
            ValueError: it does not follow from the steps before it.
        """
        at = None
        if log.came_from >= 0:
            if log.came_from >= len(self.steps):
                raise ValueError(f"came_from is {log.came_from}, but only {len(self.steps)} steps came before")
            at = self.ends[log.came_from]
            if at is None or not 0 < log.follows <= at.stop:
                raise ValueError(f"follows is {log.follows}, which is not on the path of step {log.came_from}")
            while at.start >= log.follows:
                at = at.parent
                assert at is not None
        begun = StepLog(log.number, log.agent, log.came_from, log.follows, log.began_at, log.runs)
        position = self._enter(begun, at)
        if log.output_blocks:
            self._generate(position, log.output_blocks)
        self.end(position, log.ended_at)
        return position

    # --- inside ---

    def _find(self, prompt: bytes) -> tuple[Segment | None, int]:
        """The last segment that a prompt shares, perhaps in part, and the blocks that it shares in all."""
        last, children, at = None, self._roots, 0
        while (child := children.get(prompt[at : at + BLOCK_BYTES])) is not None:
            last = child
            if not prompt.startswith(child.tokens, at):
                return last, at // BLOCK_BYTES + common_blocks(child.tokens, prompt, at, len(prompt))
            at += len(child.tokens)
            children = child.children
        return last, at // BLOCK_BYTES

    def _enter(self, log: StepLog, at: Segment | None, prompt: bytes = b"") -> int:
        position = len(self.steps)
        if at is not None and log.follows < at.stop:
            at = self._split(at, log.follows - at.start, position)
        log.symbol = attach_symbol(at, position)
        for segment in lineage(at):
            segment.touch(position, log.agent, False)
        end, start = at, log.follows
        for run in log.runs:
            part = prompt[start * BLOCK_BYTES : (start + run.blocks) * BLOCK_BYTES]
            end = self._add(end, run.blocks, position, log.agent, False, part)
            end.sharing, end.key = run.sharing, run.key
            start += run.blocks
        if end is not None and end.ends == INSIDE:
            end.ends = PROMPT_END
        self.steps.append(log)
        self.ends.append(end)
        self.last_step[log.agent] = position
        self._positions[log.number] = position
        return position

    def _generate(self, position: int, blocks: int, tokens: bytes = b"") -> Segment:
        end, log = self.ends[position], self.steps[position]
        log.output_blocks += blocks
        if end is not None and end.output and end.touched == [position] and not end.branches and end.ends == INSIDE:
            end.blocks += blocks
            end.tokens += tokens
            return end
        end = self.ends[position] = self._add(end, blocks, position, log.agent, True, tokens)
        return end

    def _add(self, parent: Segment | None, blocks: int, position: int, agent: str, output: bool, tokens: bytes) -> Segment:
        start = 0 if parent is None else parent.stop
        segment = Segment(parent, start, blocks, position, agent, output)
        if tokens:
            segment.tokens = tokens
            (self._roots if parent is None else parent.children)[tokens[:BLOCK_BYTES]] = segment
        if parent is not None:
            parent.branches += 1
        self.segments.append(segment)
        return segment

    def _split(self, segment: Segment, blocks: int, position: int) -> Segment:
        parent = segment.parent
        upper = segment.split(blocks, position)
        if upper.tokens:
            (self._roots if parent is None else parent.children)[upper.tokens[:BLOCK_BYTES]] = upper
        self.segments.append(upper)
        return upper


def lineage(segment: Segment | None) -> list[Segment]:
    """A segment and all above it, the first of the path first."""
    path: list[Segment] = []
    while segment is not None:
        path.append(segment)
        segment = segment.parent
    path.reverse()
    return path


def _run(entry: Entry) -> Run:
    others = entry.workflows
    many = others > 2
    return Run(entry.blocks, 2 if many else min(others, 1), crc32(entry.tokens[-BLOCK_BYTES:]) if many else 0)


def _added(follows: int, blocks: int, sharing: Sequence[Run]) -> Iterator[Run]:
    """What a prompt adds behind the blocks that its workflow knew, cut where the number of those who had them changes."""
    start = 0
    for run in sharing:
        stop = start + run.blocks
        if stop > follows:
            yield run._replace(blocks=stop - max(start, follows))
        start = stop
    if blocks > max(start, follows):
        yield Run(blocks - max(start, follows))
