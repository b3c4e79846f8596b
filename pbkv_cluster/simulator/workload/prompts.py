"""Rebuilds the token ids of prompts and replies, without their text.

A token id is a pure function of segment id and offset. So equal segments have equal tokens, a shorter segment is a prefix of
a longer one with the same id, and different ids have unrelated tokens. A reply of n tokens has offsets 0 to n of its output
id. If a later prompt contains the reply with chat markup, the first n tokens of that segment are the reply and the markup
follows.

The function is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) in counter mode,
keyed with a BLAKE2b digest of the segment's id: the same ids on every platform, a few nanoseconds each.
"""

import hashlib
import math

import numpy as np

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.step_traces import TraceStep

# Every model has a larger vocabulary, and control tokens, if they are among these ids, are the first. Even with so few ids,
# blocks of 16 random tokens do not collide.
DEFAULT_VOCAB = 1024
DEFAULT_RESERVED = 16

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def scaled(tokens: int, factor: float) -> int:
    """`tokens` times `factor`, rounded: at least 1 unless it was 0, and monotonic in `tokens`."""
    return max(1, round(tokens * factor)) if tokens else 0


class PromptBuilder:
    """Builds packed prompts and replies of steps, for one vocabulary and one scale."""

    def __init__(
        self,
        vocab_size: int = DEFAULT_VOCAB,
        reserved: int = DEFAULT_RESERVED,
        scale: float = 1.0,
        max_output: int | None = None,
    ) -> None:
        """Args:
            vocab_size: upper bound of the ids, exclusive.
            reserved: lower bound of the ids, so that a model's control tokens are avoided.
            scale: factor of all lengths of segments and replies, above 0 and at most 1.
            max_output: longest reply in tokens. Later prompts contain the whole reply even so.

        Raises:
            InvalidArgument: a value is out of range.
        """
        if reserved < 0:
            raise InvalidArgument("reserved", f"must not be negative, got {reserved}")
        if not reserved + 2 <= vocab_size <= 2**31:
            raise InvalidArgument("vocab_size", f"must leave two ids above the {reserved} reserved ones, got {vocab_size}")
        if not 0 < scale <= 1 or math.isnan(scale):
            raise InvalidArgument("scale_tokens", f"must be above 0 and at most 1, got {scale}")
        if max_output is not None and max_output < 1:
            raise InvalidArgument("max_output", f"must be at least 1, got {max_output}")
        self._span = np.uint64(vocab_size - reserved)
        self._reserved = np.uint64(reserved)
        self._scale = scale
        self._max_output = max_output

    def segment(self, segment_id: str, tokens: int) -> bytes:
        """The first `tokens` packed token ids of a segment."""
        # Ids from a file contain no surrogates, but those of other callers may, and must not collide.
        digest = hashlib.blake2b(segment_id.encode(errors="surrogatepass"), digest_size=8).digest()
        key = np.frombuffer(digest, dtype="<u8")
        bits = key + np.arange(1, tokens + 1, dtype=np.uint64) * _GAMMA
        bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
        bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
        bits ^= bits >> np.uint64(31)
        ids = self._reserved + (((bits >> np.uint64(32)) * self._span) >> np.uint64(32))
        packed: bytes = ids.astype("<i4").tobytes()
        return packed

    def prompt(self, step: TraceStep) -> bytes:
        """The packed token ids of a step's prompt."""
        return b"".join(self.segment(segment.id, scaled(segment.tokens, self._scale)) for segment in step.prompt)

    def output(self, step: TraceStep) -> bytes:
        """The packed token ids of a step's reply, at least one."""
        return self.segment(step.output_id, self._output_tokens(step))

    def _output_tokens(self, step: TraceStep) -> int:
        tokens = max(1, scaled(step.output_tokens, self._scale))
        return tokens if self._max_output is None else min(tokens, self._max_output)
