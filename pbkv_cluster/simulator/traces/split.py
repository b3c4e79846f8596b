"""Splits a trace by task, so that what is learnt from one part has seen no task of another.

Runs of one task share its text, so all of them are in one part. The part depends on the task's group and a salt alone: it is
the same in every file, whatever the order and number of other tasks. Shares are therefore met only on average, and a part of
a small trace can be empty.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from xxhash import xxh3_64_intdigest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.files import Trace

_ROUNDING = 1e-9


def split(trace: Trace, shares: Mapping[str, float], salt: str = "") -> dict[str, Trace]:
    """The parts of a trace by name. Each workflow is in one of them, in the order of the trace.

    Args:
        trace: any trace.
        shares: of the task groups, by name of the part; they add up to 1.
        salt: different salts give independent splits.

    Raises:
        InvalidArgument: the shares are not positive, or do not add up to 1.
    """
    _check(shares)
    numbers: dict[str, list[int]] = {name: [] for name in shares}
    for number, workflow in enumerate(trace.workflows):
        numbers[part_of(workflow.group, shares, salt)].append(number)
    return {name: _only(trace, chosen) for name, chosen in numbers.items()}


def part_of(group: str, shares: Mapping[str, float], salt: str = "") -> str:
    """The part that a task group belongs to; shares as in `split`."""
    at = xxh3_64_intdigest(f"pbkv-split/{salt}/{group}".encode()) / 2**64
    passed, part = 0.0, ""
    for part, share in shares.items():  # noqa: B007  # the last part gets what rounding leaves
        passed += share
        if at < passed:
            break
    return part


def _only(trace: Trace, numbers: list[int]) -> Trace:
    workflows = tuple(trace.workflows[number] for number in numbers)
    if trace.starts_at is None:
        return replace(trace, workflows=workflows)
    return replace(trace, workflows=workflows, starts_at=tuple(trace.starts_at[number] for number in numbers))


def _check(shares: Mapping[str, float]) -> None:
    if not shares or not all(share > 0 for share in shares.values()):
        raise InvalidArgument("shares", f"must be above 0, at least one, got {dict(shares)}")
    if abs(math.fsum(shares.values()) - 1) > _ROUNDING:
        raise InvalidArgument("shares", f"must add up to 1, got {math.fsum(shares.values()):g}")
