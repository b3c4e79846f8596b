"""What one workflow has read and written, step by step, in segments that are cut where its own paths part.

The record does not depend on what the cache still holds: a block that was evicted and computed again has the history that it
had. It is built step by step, from nothing that only a later step shows, so its log tells a learner all that was known when.

A step is entered with its prompt, then goes along known segments or adds new ones as it generates, then ends. These operations
(`enter`, `follow`, `generate`, `end`) build the record both live (`begin`, `write`), where tokens tell which blocks are known,
and from a log (`replay.py`), which tells it in numbers of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.workflow.access_log import INSIDE, StepLog
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity
from pbkv_cluster.reuse.record.prompt_runs import count_reads, prompt_runs
from pbkv_cluster.reuse.record.segment import Segment, attach_symbol
from pbkv_cluster.reuse.record.segment_trie import SegmentTrie


class WorkflowRecord:
    """One workflow's steps and segments. A step's position is its index, in the order in which steps began here."""

    def __init__(self) -> None:
        self.steps: list[StepLog] = []
        self.ends: list[Segment | None] = []  # last segment of each step's path
        self.last_step: dict[str, int] = {}  # position of each agent's last step
        self.changes = 0  # goes up with every change
        self.trie = SegmentTrie()
        self.segments = self.trie.segments
        self._positions: dict[int, int] = {}  # of the last step with each number

    # --- live ---

    def begin(
        self, number: int, agent: str, tokens: bytes, prompt_blocks: int, now: float, popularity: PrefixPopularity
    ) -> int:
        """A step begins. Returns its position.

        A step that was preempted, and begins again with all that it had written, keeps its position.

        Args:
            number: as the gateway counts.
            agent: that calls.
            tokens: of the sequence so far; a last block that is not full is ignored.
            prompt_blocks: how many of its blocks are prompt; the others were generated before, here or elsewhere.
            now: seconds.
            popularity: of the prefixes of all workflows; this prompt is counted there.
        """
        self.changes += 1
        position = self._preempted(number, agent, tokens, prompt_blocks)
        if position is None:
            position = self._read(number, agent, tokens[: prompt_blocks * BLOCK_BYTES], now, popularity)
        end, full = self.ends[position], len(tokens) // BLOCK_BYTES
        known = 0 if end is None else end.stop
        if known < full:
            self.write(position, tokens[known * BLOCK_BYTES : full * BLOCK_BYTES])
        return position

    def write(self, position: int, tokens: bytes) -> list[Segment]:
        """A step has generated more blocks. Returns the segments that hold them, in order."""
        self.changes += 1
        end = self.ends[position]
        path, last_blocks, blocks = self.trie.walk(end, tokens)
        if path:
            path[-1] = self.trie.split(path[-1], path[-1].start + last_blocks, position)
        for segment in path:
            self.follow(position, segment)
        rest = tokens[blocks * BLOCK_BYTES :]
        if rest:
            path.append(self.generate(position, len(rest) // BLOCK_BYTES, rest))
        return path

    def match(self, tokens: bytes) -> list[Segment]:
        """The segments that a prompt goes along, in order; it may leave the last before its end."""
        return self.trie.walk(None, tokens[: len(tokens) // BLOCK_BYTES * BLOCK_BYTES]).path

    def find(self, number: int) -> StepLog | None:
        """The last step with a number, as the gateway counts them; None: it was not run here."""
        position = self._positions.get(number)
        return None if position is None else self.steps[position]

    def tokens(self, number: int) -> Iterator[bytes] | None:
        """The tokens of the path of the last step with a number, in parts; None: it is not known here."""
        position = self._positions.get(number)
        return None if position is None else (segment.tokens for segment in self.path(position))

    def position(self, number: int) -> int | None:
        """Position of the last step with a number."""
        return self._positions.get(number)

    def path(self, position: int) -> list[Segment]:
        """The segments of a step, in order."""
        return self.trie.path(self.ends[position])

    # --- operations, live and from a log ---

    def enter(self, log: StepLog, source: Segment | None, parts: Sequence[bytes]) -> list[Segment]:
        """Enters a step and its prompt. Returns the segments of the prompt, in order.

        Args:
            log: of the step; its symbol is set here.
            source: the last segment that the prompt follows, perhaps in part; None: it follows none.
            parts: tokens of each of the log's runs; empty: not known.
        """
        position = len(self.steps)
        if source is not None:
            source = self.trie.split(source, log.follows, position)
        log.symbol = attach_symbol(source, position)
        path = self.trie.path(source)
        for segment in path:
            segment.touch(position, log.agent, False)
        end = source
        for run, tokens in zip(log.runs, parts, strict=True):
            end = self.trie.add(end, run.blocks, position, log.agent, False, tokens)
            end.sharing, end.key = run.sharing, run.key
            path.append(end)
        if end is not None:
            end.prompted = True
        self.steps.append(log)
        self.ends.append(end)
        self.last_step[log.agent] = position
        self._positions[log.number] = position
        return path

    def follow(self, position: int, segment: Segment) -> None:
        """A step's output goes along a segment that follows its path so far."""
        log = self.steps[position]
        if segment.used_at[0] < position:  # else a step that began later was quicker, which no log of this one could refer to
            log.repeats, log.repeats_to = segment.used_at[0], segment.stop
        segment.touch(position, log.agent, True)
        log.output_blocks += segment.blocks
        self.ends[position] = segment

    def generate(self, position: int, blocks: int, tokens: bytes) -> Segment:
        """A step's output adds blocks that are new to the workflow. Returns the segment that holds them.

        Args:
            position: of the step.
            blocks: their number.
            tokens: of the blocks; empty: not known.
        """
        end, log = self.ends[position], self.steps[position]
        log.output_blocks += blocks
        if end is not None and end.output and end.used_at == [position] and not end.branches and end.ends == INSIDE:
            self.trie.extend(end, blocks, tokens)
            return end
        end = self.ends[position] = self.trie.add(end, blocks, position, log.agent, True, tokens)
        return end

    def end(self, position: int, now: float) -> None:
        """A step has ended, or was preempted."""
        self.changes += 1
        self.steps[position].ended_at = now
        end = self.ends[position]
        if end is not None:
            end.replies += 1

    # --- inside ---

    def _preempted(self, number: int, agent: str, tokens: bytes, prompt_blocks: int) -> int | None:
        """The position of a step that ended, if it goes on with this; it has not ended then. Else None."""
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

    def _read(self, number: int, agent: str, prompt: bytes, now: float, popularity: PrefixPopularity) -> int:
        """Enters a new step and its prompt. Returns its position."""
        known, _, follows = self.trie.walk(None, prompt)
        source = known[-1] if known else None
        if not self.steps:
            popularity.workflow_count += 1
        # Blocks that only the workflow's own replies had are new to its prompts.
        read = next((segment.start for segment in known if segment.output), follows)
        stats = popularity.read(prompt)
        runs, parts = prompt_runs(stats, follows)
        log = StepLog(number, agent, source.used_at[-1] if source else -1, follows, now, runs)
        path = self.enter(log, source, parts)
        position = len(self.steps) - 1
        count_reads(position, path, stats, read)
        return position
