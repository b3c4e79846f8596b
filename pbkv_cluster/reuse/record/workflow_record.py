"""What one workflow has read and written so far, cut where its own prompts have parted.

The record does not depend on what the cache still holds: a block that was evicted and computed anew has the history that it
had. It is built step by step, from nothing that only a later step shows, and its log tells a learner all that was known when.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from pbkv_cluster.core.access_log import INSIDE, Run, StepLog
from pbkv_cluster.core.tokens import BLOCK_BYTES, common_blocks
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity, PrefixStat
from pbkv_cluster.reuse.record.segment import Segment, attach_symbol, lineage

_FEW = 2  # workflows


class WorkflowRecord:
    """One workflow's steps and segments. Steps count by position, in the order in which they began here."""

    def __init__(self) -> None:
        self.steps: list[StepLog] = []
        self.segments: list[Segment] = []
        self.ends: list[Segment | None] = []  # where each step's path ends
        self.last_step: dict[str, int] = {}  # of each agent
        self.changes = 0  # goes up whenever something of this changes
        self._roots: dict[bytes, Segment] = {}  # by the tokens of their first block
        self._positions: dict[int, int] = {}  # by number

    # --- as it happens ---

    def begin(self, number: int, agent: str, tokens: bytes, prompt_blocks: int, now: float, catalog: PrefixPopularity) -> int:
        """A step comes. Returns its position.

        One that comes again after it was preempted, with all that it had written, is the same one.

        Args:
            number: as the gateway counts.
            agent: who calls.
            tokens: of the sequence so far; a last block that is not full is left out.
            prompt_blocks: how many of its blocks are prompt; the others were generated before, here or elsewhere.
            now: seconds.
            catalog: what all workflows read; it is shown the prompt.
        """
        self.changes += 1
        position = self._preempted(number, agent, tokens, prompt_blocks)
        if position is None:
            position = self._read(number, agent, tokens[: prompt_blocks * BLOCK_BYTES], now, catalog)
        end, full = self.ends[position], len(tokens) // BLOCK_BYTES
        known = 0 if end is None else end.stop
        if known < full:
            self.write(position, tokens[known * BLOCK_BYTES : full * BLOCK_BYTES])
        return position

    def write(self, position: int, tokens: bytes) -> list[Segment]:
        """A step has generated more blocks. Returns the segments that hold them, in order."""
        self.changes += 1
        found: list[Segment] = []
        at = 0
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
            self._repeat(position, child)
            at += child.blocks * BLOCK_BYTES
            found.append(child)
        return found

    def end(self, position: int, now: float) -> None:
        """A step has ended, or was preempted."""
        self.changes += 1
        self.steps[position].ended_at = now
        end = self.ends[position]
        if end is not None:
            end.replies += 1

    def known(self, tokens: bytes) -> list[Segment]:
        """The segments that a prompt goes along, in order; it may leave the last before its end."""
        return lineage(self._find(tokens)[0])

    def path(self, position: int) -> list[Segment]:
        """The segments of a step, in order."""
        return lineage(self.ends[position])

    # --- from a log ---

    def replay(self, log: StepLog) -> int:
        """A step of a log, without its tokens, from its beginning to its end. Returns its position.

        Raises:
            ValueError: it does not follow from the steps before it.
        """
        at = self._source(log)
        repeated = self._repeated(log, at)
        begun = StepLog(log.number, log.agent, log.came_from, log.follows, log.began_at, list(log.runs))
        position = len(self.steps)
        self._enter(begun, at, [b""] * len(log.runs))
        if repeated is not None:
            if log.repeats_to < repeated.stop:
                repeated = self._split(repeated, log.repeats_to - repeated.start, position)
            for segment in lineage(repeated):
                if segment.start >= begun.follows:
                    self._repeat(position, segment)
        if log.output_blocks > begun.output_blocks:
            self._generate(position, log.output_blocks - begun.output_blocks)
        self.end(position, log.ended_at)
        return position

    def _source(self, log: StepLog) -> Segment | None:
        """The last segment that a logged prompt follows, perhaps in part."""
        if log.came_from < 0 and log.follows:
            raise ValueError(f"follows is {log.follows}, but came_from is {log.came_from}")
        if any(run.blocks <= 0 for run in log.runs):
            raise ValueError("runs: one has no blocks")
        return None if log.came_from < 0 else self._on_path("came_from", log.came_from, "follows", log.follows)

    def _repeated(self, log: StepLog, at: Segment | None) -> Segment | None:
        """The last segment of its workflow's that a logged output went along, perhaps in part."""
        if log.output_blocks < 0:
            raise ValueError(f"output_blocks is {log.output_blocks}")
        if log.repeats < 0:
            return None
        if log.runs or not 0 < log.repeats_to - log.follows <= log.output_blocks:
            raise ValueError(f"repeats_to is {log.repeats_to}, which is not in the output")
        segment = self._on_path("repeats", log.repeats, "repeats_to", log.repeats_to)
        if log.follows and self._on_path("repeats", log.repeats, "follows", log.follows) is not at:
            raise ValueError(f"repeats is {log.repeats}, whose path the prompt is not on")
        return segment

    def _on_path(self, field: str, position: int, depth_field: str, blocks: int) -> Segment:
        if position >= len(self.steps):
            raise ValueError(f"{field} is {position}, but only {len(self.steps)} steps came before")
        segment = self.ends[position]
        if segment is None or not 0 < blocks <= segment.stop:
            raise ValueError(f"{depth_field} is {blocks}, which is not on the path of step {position}")
        while segment.start >= blocks:
            assert segment.parent is not None
            segment = segment.parent
        return segment

    # --- inside ---

    def _preempted(self, number: int, agent: str, tokens: bytes, prompt_blocks: int) -> int | None:
        """The position of a step that ended, if this is how it goes on; nothing has ended there then."""
        position = self._positions.get(number)
        if position is None:
            return None
        log, at = self.steps[position], 0
        if log.ended_at < 0.0 or log.agent != agent or log.prompt_blocks != prompt_blocks:
            return None
        for segment in self.path(position):
            if not tokens.startswith(segment.tokens, at):
                return None
            at += len(segment.tokens)
        end = self.ends[position]
        if end is not None:
            end.replies -= 1
        log.ended_at = -1.0
        return position

    def _read(self, number: int, agent: str, prompt: bytes, now: float, catalog: PrefixPopularity) -> int:
        """Enters a new step and its prompt."""
        at, follows = self._find(prompt)
        source = at.touched[-1] if at is not None else -1
        if not self.steps:
            catalog.arrivals += 1
        # What only its own replies had is new to its prompts.
        read = next((segment.start for segment in lineage(at) if segment.output), follows)
        entries = catalog.read(prompt)
        runs, parts = _added(follows, entries)
        path = self._enter(StepLog(number, agent, source, follows, now, runs), at, parts)
        position = len(self.steps) - 1
        _link(position, agent, path, entries, read)
        return position

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

    def _enter(self, log: StepLog, at: Segment | None, parts: Sequence[bytes]) -> list[Segment]:
        """Enters a step and its prompt; `parts` are the tokens of its runs. Returns its path."""
        position = len(self.steps)
        if at is not None and log.follows < at.stop:
            at = self._split(at, log.follows - at.start, position)
        log.symbol = attach_symbol(at, position)
        path = lineage(at)
        for segment in path:
            segment.touch(position, log.agent, False)
        end = at
        for run, tokens in zip(log.runs, parts, strict=True):
            end = self._add(end, run.blocks, position, log.agent, False, tokens)
            end.sharing, end.key = run.sharing, run.key
            path.append(end)
        if end is not None:
            end.prompted = True
        self.steps.append(log)
        self.ends.append(end)
        self.last_step[log.agent] = position
        self._positions[log.number] = position
        return path

    def _repeat(self, position: int, child: Segment) -> None:
        """A step generates what the workflow knows already."""
        log = self.steps[position]
        if child.touched[0] < position:  # else a step that began later was quicker, which no log of this one could refer to
            log.repeats, log.repeats_to = child.touched[0], child.stop
        child.touch(position, log.agent, True)
        log.output_blocks += child.blocks
        self.ends[position] = child

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


def _added(follows: int, entries: Sequence[PrefixStat]) -> tuple[list[Run], list[bytes]]:
    """What a prompt adds behind the blocks that its workflow knew, cut where the workflows that had it are others; and its
    tokens, which are the entries' own where it adds the whole of one: they lie in memory once."""
    runs, parts, stop = [], [], 0
    for entry in entries:
        stop += entry.blocks
        if stop > follows:
            others = entry.workflows
            blocks = min(entry.blocks, stop - follows)
            if others > _FEW:
                runs.append(Run(blocks, 2, crc32(entry.tokens[-BLOCK_BYTES:])))
            else:
                runs.append(Run(blocks, 1 if others else 0))
            parts.append(entry.tokens if blocks == entry.blocks else entry.tokens[-blocks * BLOCK_BYTES :])
    return runs, parts


def _link(position: int, agent: str, path: Sequence[Segment], entries: Sequence[PrefixStat], read: int) -> None:
    """Tells the segments of a prompt their entries, and its entries that a workflow has come to them; to those within the first
    `read` blocks it had come before."""
    index = start = 0
    for entry in entries:
        if start >= read or not entry.workflows:  # without any: it was dropped, and is another
            while path[index].stop <= start:
                index += 1
            above = path[index].parent
            entry.count(position, position - (above.touched[0] if above is not None else 0))
        start += entry.blocks
        while index < len(path) and path[index].stop <= start:
            path[index].entry = entry
            index += 1
