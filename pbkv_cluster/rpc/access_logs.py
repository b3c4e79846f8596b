"""Access logs as messages. A sender is not trusted: every field is checked, and the error names the one that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pbkv_cluster.core import checks
from pbkv_cluster.core.workflow.access_log import SYMBOLS, AccessLog, Run, StepLog
from pbkv_cluster.rpc.v1 import predictor_pb2

MAX_STEPS = 4096  # of a log
MAX_BATCH_STEPS = 8192  # of all logs that travel together
MAX_RUNS = 4096  # of a step
MAX_BATCH_RUNS = 65_536
MAX_BLOCKS = 1 << 24
_MAX_SHARING = 2


def log_to_wire(log: AccessLog) -> predictor_pb2.AccessLog:
    steps = [_step_to_wire(step) for step in log.steps]
    return predictor_pb2.AccessLog(workflow_id=log.workflow, steps=steps, workload=log.workload)


def logs_from_wire(messages: Sequence[predictor_pb2.AccessLog]) -> list[AccessLog]:
    """Raises:
    InvalidArgument: a field is missing or out of its range, or the logs are too long together.
    """
    steps = [step for message in messages for step in message.steps]
    checks.count("logs.steps", len(steps), MAX_BATCH_STEPS)
    checks.count("logs.steps.runs", sum(len(step.runs) for step in steps), MAX_BATCH_RUNS)
    return [_log_from_wire(message, f"logs[{at}]") for at, message in enumerate(messages)]


def _step_to_wire(step: StepLog) -> predictor_pb2.AccessStep:
    return predictor_pb2.AccessStep(
        number=step.number,
        agent_id=step.agent,
        came_from=None if step.came_from < 0 else step.came_from,
        follows=step.follows,
        began_at_s=step.began_at,
        runs=_runs_to_wire(step.runs),
        symbol=step.symbol,
        output_blocks=step.output_blocks,
        ended_at_s=None if step.ended_at < 0.0 else step.ended_at,
        repeats=None if step.repeats < 0 else step.repeats,
        repeats_to=step.repeats_to,
    )


def _runs_to_wire(runs: Iterable[Run]) -> list[predictor_pb2.AccessStep.Run]:
    return [predictor_pb2.AccessStep.Run(blocks=run.blocks, sharing=run.sharing, key=run.key) for run in runs]


def _log_from_wire(message: predictor_pb2.AccessLog, field: str) -> AccessLog:
    checks.required_name(f"{field}.workflow_id", message.workflow_id)
    checks.name(f"{field}.workload", message.workload)
    checks.not_empty(f"{field}.steps", message.steps)
    checks.count(f"{field}.steps", len(message.steps), MAX_STEPS)
    steps = [_step_from_wire(step, f"{field}.steps[{at}]") for at, step in enumerate(message.steps)]
    return AccessLog(message.workflow_id, steps, message.workload)


def _step_from_wire(message: predictor_pb2.AccessStep, field: str) -> StepLog:
    checks.required_name(f"{field}.agent_id", message.agent_id)
    checks.in_range(f"{field}.number", message.number, 0, (1 << 31) - 1)
    checks.seconds(f"{field}.began_at_s", message.began_at_s)
    checks.seconds(f"{field}.ended_at_s", message.ended_at_s)
    for name, position in (("came_from", message.came_from), ("repeats", message.repeats)):
        checks.in_range(f"{field}.{name}", position, 0, MAX_STEPS - 1)
    for name, blocks in (
        ("follows", message.follows),
        ("output_blocks", message.output_blocks),
        ("repeats_to", message.repeats_to),
    ):
        checks.in_range(f"{field}.{name}", blocks, 0, MAX_BLOCKS)
    checks.in_range(f"{field}.symbol", message.symbol, 0, SYMBOLS - 1)
    checks.count(f"{field}.runs", len(message.runs), MAX_RUNS)
    for run in message.runs:
        checks.in_range(f"{field}.runs.blocks", run.blocks, 1, MAX_BLOCKS)
        checks.in_range(f"{field}.runs.sharing", run.sharing, 0, _MAX_SHARING)
    return StepLog(
        number=message.number,
        agent=message.agent_id,
        came_from=message.came_from if message.HasField("came_from") else -1,
        follows=message.follows,
        began_at=message.began_at_s,
        runs=[Run(run.blocks, run.sharing, run.key) for run in message.runs],
        symbol=message.symbol,
        output_blocks=message.output_blocks,
        ended_at=message.ended_at_s if message.HasField("ended_at_s") else -1.0,
        repeats=message.repeats if message.HasField("repeats") else -1,
        repeats_to=message.repeats_to,
    )
