"""Lines of a step trace, from the values that reading one gives."""

import json
from typing import Any

from pbkv_cluster.simulator.traces.step_traces import TraceStep, TraceWorkflow


def encoded(line: dict[str, Any]) -> bytes:
    """A line as it is written."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def line_of(workflow: TraceWorkflow, position: int) -> dict[str, Any]:
    """The line of one step. Optional fields that say nothing are left out."""
    step = workflow.steps[position]
    line = {
        "workflow_id": workflow.id,
        "workload": workflow.workload,
        "step": position,
        "agent": step.agent,
        "prompt_segments": _segments(step),
        "prompt_tokens": step.prompt_tokens,
        "output_id": step.output_id,
        "output_tokens": step.output_tokens,
    }
    if not position:
        if workflow.group != workflow.id:
            line["task_group"] = workflow.group
        if workflow.arrival_s is not None:
            line["arrival_s"] = workflow.arrival_s
        if step.task_words:
            line["task_words"] = list(step.task_words)
    optional = {"phase": step.call_site, "action": step.tool, "tool_s": step.pause_s, "words": list(step.words)}
    return line | {name: value for name, value in optional.items() if value}


def _segments(step: TraceStep) -> list[dict[str, Any]]:
    return [
        {"kind": each.kind.value, "id": each.id, "tokens": each.tokens} | ({"pseudo": True} if each.pseudo else {})
        for each in step.prompt
    ]
