"""A running step in the record of its workflow."""

from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

_ENDLESS = 1 << 40  # blocks


class RecordedStep:
    """The segments of a running step, from the start of its sequence. A shadow reads those that the cache writes."""

    __slots__ = ("_record", "position", "segments")

    def __init__(self, record: WorkflowRecord | None, position: int, segments: list[Segment]) -> None:
        self._record = record
        self.position = position  # of the step in the record
        self.segments = segments  # in order; other steps may have split some since, see `BlockTable.segment`

    @classmethod
    def of(cls, record: WorkflowRecord, position: int) -> "RecordedStep":
        """A step that has just begun in a record."""
        return cls(record, position, record.path(position))

    @property
    def known_blocks(self) -> int:
        """Blocks that the segments cover."""
        return self.segments[-1].stop if self.segments else 0

    def extend(self, tokens: bytes | bytearray, blocks: int) -> None:
        """Records the blocks that are not known yet.

        Args:
            tokens: of the sequence, from its start.
            blocks: how many of its blocks have been computed.
        """
        known = self.known_blocks
        if blocks <= known:
            return
        assert self._record is not None
        written = self._record.write(self.position, bytes(tokens[known * BLOCK_BYTES : blocks * BLOCK_BYTES]))
        grown = bool(self.segments) and written[0] is self.segments[-1]
        self.segments.extend(written[1:] if grown else written)

    def end(self, now: float) -> None:
        """The step has ended, or was preempted."""
        if self._record is not None:
            self._record.end(self.position, now)


UNRECORDED = RecordedStep(None, 0, [Segment(None, 0, _ENDLESS, 0, "", False)])
"""Any step of a cache whose policies read no record: one segment that covers every sequence."""
