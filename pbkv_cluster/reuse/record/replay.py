"""Rebuilds a workflow's record from the logs of its steps, without tokens. Logs may come from anyone and are checked."""

from __future__ import annotations

from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord


def replay(record: WorkflowRecord, log: StepLog) -> int:
    """Adds a logged step to a record, from its beginning to its end. Returns its position.

    Raises:
        ValueError: it does not follow from the steps before it; the record has not changed.
    """
    source = _source(record, log)
    repeated = _repeated(record, log, source)
    step = StepLog(log.number, log.agent, log.came_from, log.follows, log.began_at, list(log.runs))
    position = len(record.steps)
    record.enter(step, source, [b""] * len(log.runs))
    if repeated is not None:
        last = record.trie.split(repeated, log.repeats_to, position)
        for segment in record.trie.path(last):
            if segment.start >= step.follows:
                record.follow(position, segment)
    if log.output_blocks > step.output_blocks:
        record.generate(position, log.output_blocks - step.output_blocks, b"")
    record.end(position, log.ended_at)
    return position


def _source(record: WorkflowRecord, log: StepLog) -> Segment | None:
    """The last segment that a logged prompt follows, perhaps in part."""
    if log.came_from < 0 and log.follows:
        raise ValueError(f"follows is {log.follows}, but came_from is {log.came_from}")
    if any(run.blocks <= 0 for run in log.runs):
        raise ValueError("runs: one has no blocks")
    return None if log.came_from < 0 else _on_path(record, "came_from", log.came_from, "follows", log.follows)


def _repeated(record: WorkflowRecord, log: StepLog, source: Segment | None) -> Segment | None:
    """The last known segment that a logged output goes along, perhaps in part."""
    if log.output_blocks < 0:
        raise ValueError(f"output_blocks is {log.output_blocks}")
    if log.repeats < 0:
        return None
    if log.runs or not 0 < log.repeats_to - log.follows <= log.output_blocks:
        raise ValueError(f"repeats_to is {log.repeats_to}, which is not in the output")
    segment = _on_path(record, "repeats", log.repeats, "repeats_to", log.repeats_to)
    if log.follows and _on_path(record, "repeats", log.repeats, "follows", log.follows) is not source:
        raise ValueError(f"repeats is {log.repeats}, whose path the prompt is not on")
    return segment


def _on_path(record: WorkflowRecord, field: str, position: int, depth_field: str, blocks: int) -> Segment:
    if position >= len(record.steps):
        raise ValueError(f"{field} is {position}, but only {len(record.steps)} steps came before")
    end = record.ends[position]
    if end is None or not 0 < blocks <= end.stop:
        raise ValueError(f"{depth_field} is {blocks}, which is not on the path of step {position}")
    return record.trie.at_depth(end, blocks)
