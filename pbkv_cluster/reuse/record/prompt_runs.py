"""Where one workflow's record and the popularity of all prefixes meet: a prompt as runs of equally shared blocks."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.workflow.access_log import Run
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from pbkv_cluster.reuse.record.segment import Segment

_FEW = 2  # workflows


def prompt_runs(stats: Sequence[PrefixStat], follows: int) -> tuple[list[Run], list[bytes]]:
    """The blocks of a prompt that are new to its workflow, cut where other workflows have had them.

    Args:
        stats: of the prompt.
        follows: number of its first blocks that the workflow knew.

    Returns:
        The runs and their tokens. A run that is the whole of a stat has the stat's own bytes: they lie in memory once.
    """
    runs, parts, stop = [], [], 0
    for stat in stats:
        stop += stat.blocks
        if stop > follows:
            others = stat.workflows
            blocks = min(stat.blocks, stop - follows)
            if others > _FEW:
                runs.append(Run(blocks, 2, crc32(stat.tokens[-BLOCK_BYTES:])))
            else:
                runs.append(Run(blocks, 1 if others else 0))
            parts.append(stat.tokens if blocks == stat.blocks else stat.tokens[-blocks * BLOCK_BYTES :])
    return runs, parts


def count_reads(position: int, path: Sequence[Segment], stats: Sequence[PrefixStat], read: int) -> None:
    """Points the segments of a prompt to their stats, and counts the workflow where it reads a prefix for the first time.

    Args:
        position: of the step.
        path: the segments of its prompt. One that spans several stats, since others have parted in it, points to the last.
        stats: of the prompt.
        read: number of its first blocks that a prompt of the workflow had before.
    """
    index = start = 0
    for stat in stats:
        if start >= read or not stat.workflows:  # without any: it was dropped meanwhile, and is a new one
            while path[index].stop <= start:
                index += 1
            above = path[index].parent
            stat.count(position, position - (above.used_at[0] if above is not None else 0))
        start += stat.blocks
        while index < len(path) and path[index].stop <= start:
            path[index].prefix_stat = stat
            index += 1
