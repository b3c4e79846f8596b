"""Step traces for the commands that teach predictors."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path


def write_trace(path: Path, agents: Sequence[str] = ("planner", "coder", "tester"), workflows: int = 4) -> Path:
    """Workflows of the same agents, one step each, under the workload `app`."""
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
