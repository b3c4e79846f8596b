"""Access logs of workflows as messages. The sender is not trusted: every field is checked, and errors name the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pbkv_cluster.core.access_log import SYMBOLS, AccessLog, Run, StepLog
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.rpc.v1 import predictor_pb2

MAX_ID_BYTES = 256
MAX_STEPS = 4096  # of a log
MAX_BATCH_STEPS = 8192  # of all logs that travel together
MAX_RUNS = 4096  # of a step
MAX_BATCH_RUNS = 65_536
MAX_BLOCKS = 1 << 24
_MAX_SHARING = 2


def log_to_wire(log: AccessLog) -> predictor_pb2.AccessLog:
    return predictor_pb2.AccessLog(workflow_id=log.workflow, steps=[_step_to_wire(step) for step in log.steps])


def logs_from_wire(messages: Sequence[predictor_pb2.AccessLog]) -> list[AccessLog]:
    """Raises:
    InvalidArgument: a field is missing or out of range, or there are too many logs.
    """
    steps = [step for message in messages for step in message.steps]
    _check_count("logs.steps", len(steps), MAX_BATCH_STEPS)
    _check_count("logs.steps.runs", sum(len(step.runs) for step in steps), MAX_BATCH_RUNS)
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
    _check_id(f"{field}.workflow_id", message.workflow_id)
    if not message.steps:
        raise InvalidArgument(f"{field}.steps", "must not be empty")
    _check_count(f"{field}.steps", len(message.steps), MAX_STEPS)
    steps = [_step_from_wire(step, f"{field}.steps[{at}]") for at, step in enumerate(message.steps)]
    return AccessLog(message.workflow_id, steps)


def _step_from_wire(message: predictor_pb2.AccessStep, field: str) -> StepLog:
    _check_id(f"{field}.agent_id", message.agent_id)
    _check_range(f"{field}.number", message.number, (1 << 31) - 1)
    _check_time(f"{field}.began_at_s", message.began_at_s)
    _check_time(f"{field}.ended_at_s", message.ended_at_s)
    for name, position in (("came_from", message.came_from), ("repeats", message.repeats)):
        _check_range(f"{field}.{name}", position, MAX_STEPS - 1)
    for name, blocks in (
        ("follows", message.follows),
        ("output_blocks", message.output_blocks),
        ("repeats_to", message.repeats_to),
    ):
        _check_range(f"{field}.{name}", blocks, MAX_BLOCKS)
    _check_range(f"{field}.symbol", message.symbol, SYMBOLS - 1)
    _check_count(f"{field}.runs", len(message.runs), MAX_RUNS)
    for run in message.runs:
        _check_range(f"{field}.runs.blocks", run.blocks, MAX_BLOCKS, least=1)
        _check_range(f"{field}.runs.sharing", run.sharing, _MAX_SHARING)
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


def _check_id(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(field, "must not be empty")
    if len(value) > MAX_ID_BYTES or len(value.encode()) > MAX_ID_BYTES:
        raise InvalidArgument(field, f"must have at most {MAX_ID_BYTES} bytes, got {len(value.encode())}")


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidArgument(field, f"must be at most {most}, got {count}")


def _check_range(field: str, value: int, most: int, least: int = 0) -> None:
    if not least <= value <= most:
        raise InvalidArgument(field, f"must be from {least} to {most}, got {value}")


def _check_time(field: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0.0):
        raise InvalidArgument(field, f"must be a finite number of seconds, not negative, got {value}")
