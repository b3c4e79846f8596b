"""Token ids of a workflow's prompts and replies, rebuilt without their text.

A token id is a pure function of (segment id, offset), so equal segments give equal tokens, a shorter segment is a prefix of a
longer one of the same id, and unequal ids give unrelated tokens. A reply of n tokens is the offsets 0 to n of its output id:
where it comes back with chat markup around it, the first n tokens are the reply's own and the markup follows.

The function is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) in counter mode,
keyed with a BLAKE2b digest of the segment's id: the same ids on every platform, a few nanoseconds each.
"""

import hashlib
import math

import numpy as np

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.step_traces import TraceStep

# Every model's vocabulary is larger, and its first ids hold the control tokens if any do. Blocks of 16 random tokens do not
# collide, however small the vocabulary.
DEFAULT_VOCAB = 1024
DEFAULT_RESERVED = 16

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def scaled(tokens: int, factor: float) -> int:
    """A length shrunk by `factor`, at least 1 unless it was 0. A longer length never becomes the shorter one."""
    return max(1, round(tokens * factor)) if tokens else 0


class PromptBuilder:
    """Packed prompts and replies of steps, for one vocabulary and one scale."""

    def __init__(
        self,
        vocab_size: int = DEFAULT_VOCAB,
        reserved: int = DEFAULT_RESERVED,
        scale: float = 1.0,
        max_output: int | None = None,
    ) -> None:
        """Args:
            vocab_size: ids are below it.
            reserved: ids are not below it; a model's control tokens often come first.
            scale: every segment's and reply's length is multiplied by it, in (0, 1].
            max_output: longest reply in tokens. A reply cut short still comes back whole in later prompts.

        Raises:
            InvalidArgument: a value is out of its range.
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
        # Surrogates cannot occur in ids that were read, and those of a caller's own must not collide either.
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
        """The packed token ids of a step's reply: at least one, as no model answers with nothing."""
        return self.segment(step.output_id, self._output_tokens(step))

    def _output_tokens(self, step: TraceStep) -> int:
        tokens = max(1, scaled(step.output_tokens, self._scale))
        return tokens if self._max_output is None else min(tokens, self._max_output)
