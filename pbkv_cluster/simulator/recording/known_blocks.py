"""Prompts as segments, from the keys of their blocks: what begins like an earlier step is told in that step's segments.

A key names a block with all that comes before it. So the longest beginning of a prompt that is known is found by its last key,
and written with the segments of the step that it is known from, cut to its length. What follows is one new segment. Only whole
blocks are reused by a cache: tokens beyond the last one get an id that no other step has.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.simulator.recording.ids import Ids
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind

KNOWN_BLOCKS = 1 << 19  # 8 M tokens, in some 150 MB


class _Piece(NamedTuple):
    """A segment of a step's prompt and output, with those before it."""

    before: Optional["_Piece"]
    start: int  # in tokens
    id: str
    tokens: int


class HashedStep(NamedTuple):
    """The prompt and the reply of a step without their tokens."""

    prompt: tuple[Segment, ...]
    output_id: str


class KnownBlocks:
    """Blocks of earlier steps. Beyond a bound, those not seen for longest are forgotten: sharing with them does not show."""

    def __init__(self, ids: Ids, capacity_blocks: int = KNOWN_BLOCKS) -> None:
        self._ids = ids
        self._capacity = capacity_blocks
        self._pieces: OrderedDict[bytes, _Piece] = OrderedDict()  # by key: the piece that ends with or after the block

    def step(self, keys: Sequence[bytes], prompt_tokens: int, output_tokens: int, name: str) -> HashedStep:
        """Adds a step.

        Args:
            keys: of the full blocks of its prompt and output, first to last.
            prompt_tokens: of the prompt, at least 1.
            output_tokens: of the output.
            name: that no other step has.
        """
        full = prompt_tokens // BLOCK_TOKENS
        known = next((at for at in range(min(full, len(keys)), 0, -1) if keys[at - 1] in self._pieces), 0)
        last = self._pieces[keys[known - 1]] if known else None
        body: _Piece | None = None
        if known < full:
            start = keys[known - 1] if known else b""
            end = keys[full - 1] if full <= len(keys) else name
            tokens = (full - known) * BLOCK_TOKENS
            last = body = _Piece(last, known * BLOCK_TOKENS, self._ids("blocks", start, end), tokens)
        if rest := prompt_tokens - full * BLOCK_TOKENS:
            last = _Piece(last, full * BLOCK_TOKENS, self._ids("rest", name), rest)
        output = _Piece(last, prompt_tokens, self._ids("output", name), output_tokens)
        # The first block last: what follows a block that is forgotten is worth nothing.
        self._learn(keys[full : (prompt_tokens + max(0, output_tokens - 1)) // BLOCK_TOKENS], output)
        if body is not None:
            self._learn(keys[known:full], body)
        for key in reversed(keys[:known]):
            self._pieces.move_to_end(key)
        while len(self._pieces) > self._capacity:
            self._pieces.popitem(last=False)
        return HashedStep(tuple(reversed(list(_segments(last, prompt_tokens)))), output.id)

    def _learn(self, keys: Sequence[bytes], piece: _Piece) -> None:
        for key in reversed(keys):
            self._pieces.setdefault(key, piece)
            self._pieces.move_to_end(key)


def _segments(piece: _Piece | None, end: int) -> Iterator[Segment]:
    """The segments up to `end` tokens, last first."""
    while piece is not None:
        tokens = min(piece.tokens, end - piece.start)
        if tokens > 0:
            yield Segment(SegmentKind.HISTORY, piece.id, tokens)
        end = min(end, piece.start)
        piece = piece.before
