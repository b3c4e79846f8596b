"""The pauses of a workflow, and the tool calls that it announces for them."""

import math
import random

from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.simulator.traces.step_traces import TraceStep, TraceWorkflow

THINK_MEDIAN_S = 2.0
THINK_SIGMA = 1.0
UNNAMED = "tool"  # name of the tool of a pause whose tool was not logged


def draw_pauses(workflow: TraceWorkflow, think_scale: float, tool_share: float, seed: str) -> tuple[float, ...]:
    """Seconds after each step: the logged pause plus a log-normal time (median 2 s, sigma 1) times `think_scale`.

    Args:
        workflow: the recorded workflow.
        think_scale: factor of what is drawn.
        tool_share: share, from 0 to 1, of the variance of the drawn time's logarithm that is common to all calls of a tool.
        seed: of what is drawn.
    """
    draws = random.Random(f"pbkv-think/{seed}")
    return tuple(
        step.pause_s + think_scale * THINK_MEDIAN_S * _think_factor(step, workflow.workload, tool_share, draws)
        for step in workflow.steps
    )


def _think_factor(step: TraceStep, workload: str, tool_share: float, draws: random.Random) -> float:
    if not tool_share or not step.tool:
        return draws.lognormvariate(0.0, THINK_SIGMA)
    common = random.Random(f"pbkv-tool/{workload}/{step.tool}").gauss(0.0, THINK_SIGMA)
    return math.exp(math.sqrt(tool_share) * common) * draws.lognormvariate(0.0, math.sqrt(1 - tool_share) * THINK_SIGMA)


def announced_calls(workflow: TraceWorkflow, pauses: tuple[float, ...], sigma: float | None, seed: str) -> tuple[ToolCall, ...]:
    """The tool calls that are announced, one after each step but the last, each for the whole pause; none without `sigma`.

    Args:
        workflow: the recorded workflow.
        pauses: seconds after each step, as they will be.
        sigma: of the log-normal error of an announced duration; None: nothing is announced.
        seed: of the errors.
    """
    if sigma is None:
        return ()
    draws = random.Random(f"pbkv-announce/{seed}")
    return tuple(
        ToolCall(step.tool or UNNAMED, expected_s=pause * draws.lognormvariate(0.0, sigma))
        for step, pause in zip(workflow.steps[:-1], pauses, strict=False)
    )
