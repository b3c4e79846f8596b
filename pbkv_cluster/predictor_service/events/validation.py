"""Refuses malformed events, naming the field as the wire does."""

import math

import numpy as np

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.prompt_pieces import PIECES
from pbkv_cluster.core.text.words import WORD_BITS, WORDS
from pbkv_cluster.core.workflow.events import MAX_HIDDEN_BYTES, EventKind, WorkflowEvent

_MAX_STEP = 2**31 - 1
_STEP_EVENTS = (EventKind.STEP_STARTED, EventKind.STEP_FINISHED)


def check_event(event: WorkflowEvent) -> None:
    """Checks a reported event.

    Raises:
        InvalidArgument: it is malformed; the error names the field.
    """
    checks.not_empty("events.workflow_id", event.workflow)
    for field, name in (
        ("workflow_id", event.workflow),
        ("workload", event.workload),
        ("agent_id", event.agent),
        ("call_site", event.call_site),
        ("tool", event.tool),
        ("worker_id", event.worker),
    ):
        checks.name(f"events.{field}", name)
    if event.sequence < 0:
        raise InvalidArgument("events.sequence", f"must not be negative, got {event.sequence}")
    if not math.isfinite(event.time):
        raise InvalidArgument("events.time_s", f"must be a finite number of seconds, got {event.time}")
    if event.kind in _STEP_EVENTS and not event.agent:
        raise InvalidArgument("events.agent_id", "must not be empty in a step event")
    if event.kind is EventKind.STEP_PLACED and not event.worker:
        raise InvalidArgument("events.worker_id", "must not be empty where a step was placed")
    for field, step in (("step", event.step), ("parent_step", event.parent_step or 0)):
        checks.in_range(f"events.{field}", step, 0, _MAX_STEP)
    for field, tokens in (("prompt_tokens", event.prompt_tokens), ("output_tokens", event.output_tokens)):
        if tokens < 0:
            raise InvalidArgument(f"events.{field}", f"must not be negative, got {tokens}")
    if event.expected_s is not None:
        checks.seconds("events.expected_s", event.expected_s)
    _check_content(event)


def _check_content(event: WorkflowEvent) -> None:
    if len(event.pieces) > PIECES:
        raise InvalidArgument("events.pieces", f"at most {PIECES}, got {len(event.pieces)}")
    if len(event.words) > WORDS:
        raise InvalidArgument("events.words", f"at most {WORDS}, got {len(event.words)}")
    if event.words and not 0 <= min(event.words) <= max(event.words) < 1 << WORD_BITS:
        raise InvalidArgument("events.words", f"must be below 2^{WORD_BITS}, got {max(event.words)}")
    size = len(event.hidden)
    if size > MAX_HIDDEN_BYTES:
        raise InvalidArgument("events.hidden", f"at most {MAX_HIDDEN_BYTES} bytes, got {size}")
    if size % 2:
        raise InvalidArgument("events.hidden", f"{size} bytes are not a whole number of float16 values")
    if size and not np.isfinite(np.frombuffer(event.hidden, dtype="<f2")).all():
        raise InvalidArgument("events.hidden", "must hold finite values only")
