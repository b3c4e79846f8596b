"""Step traces for commands that read workflows."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pbkv_cluster.simulator.workload.generator import Sizes, generate


def write_trace(path: Path, agents: Sequence[str] = ("planner", "coder", "tester"), workflows: int = 4) -> Path:
    """Workflows of workload `app` with the same agents, one step each."""
    lines = []
    for workflow in range(workflows):
        segments: list[dict[str, object]] = [{"kind": "system", "id": "all", "tokens": 64}]
        for number, agent in enumerate(agents):
            segments = [*segments, {"kind": "task", "id": f"{workflow}-{number}", "tokens": 40}]
            lines.append(
                {
                    "workflow_id": f"w{workflow}",
                    "workload": "app",
                    "step": number,
                    "agent": agent,
                    "prompt_segments": segments,
                    "prompt_tokens": 64 + 40 * (number + 1),
                    "output_tokens": 20,
                    "output_id": f"o{workflow}-{number}",
                    "words": [number],
                }
            )
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def write_generated_trace(path: Path, workflows: int, pauses: bool) -> Path:
    """Generated workflows in the format of recorded ones, with or without the durations of their tools."""
    lines = []
    for workflow in generate(workflows, 0, Sizes(32, 96, 48, 24, 64), max_steps=8):
        for number, step in enumerate(workflow.steps):
            line: dict[str, object] = {
                "workflow_id": workflow.id,
                "workload": workflow.workload,
                "step": number,
                "agent": step.agent,
                "prompt_segments": [asdict(segment) for segment in step.prompt],
                "prompt_tokens": step.prompt_tokens,
                "output_tokens": step.output_tokens,
                "output_id": step.output_id,
            }
            lines.append(json.dumps(line | ({"tool_s": step.pause_s} if pauses else {})))
    path.write_text("\n".join(lines) + "\n")
    return path
