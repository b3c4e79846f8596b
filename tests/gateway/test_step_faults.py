"""Steps under random cancels, lost and failing workers and ended workflows: every step takes allowed transitions to one end."""

import asyncio
import itertools
import random
from collections import defaultdict
from typing import Any

import grpc
import pytest
from grpc import aio

from pbkv_cluster.gateway.step.state import NEXT_STATES, StepState
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.gateway.rig import Answer, Rig, read, running

SAMPLING = types_pb2.Sampling(max_tokens=6, seed=3)
WORKER_FAILURES = [
    None,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
]


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> dict[Step, list[StepState]]:
    """The states that each step of the test goes through."""
    taken: dict[Step, list[StepState]] = defaultdict(lambda: [StepState.ACCEPTED])
    transition = Step.transition

    def record(step: Step, state: StepState) -> None:
        transition(step, state)
        taken[step].append(state)

    monkeypatch.setattr(Step, "transition", record)
    return taken


async def outcome(call: Any) -> Answer | grpc.StatusCode:
    try:
        return await read(call)
    except aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED


async def disturb(rig: Rig, draw: random.Random, calls: list[Any], workflows: list[str]) -> None:
    """Cancels, ends and kills in random order."""
    faults: list[Any] = [*draw.sample(calls, 3), *draw.sample(workflows, 2), rig.workers[0]]
    draw.shuffle(faults)
    for fault in faults:
        match fault:
            case str():
                await rig.end_workflow(fault)
            case ScriptedWorker():
                await fault.server.stop(0)
            case _:
                fault.cancel()
        for _ in range(draw.randrange(4)):
            await rig.status()  # lets the others go on for a while
    for worker in rig.workers:
        worker.go.set()


@pytest.mark.parametrize("seed", range(6))
async def test_every_step_takes_allowed_transitions_to_one_end(seed: int, paths: dict[Step, list[StepState]]) -> None:
    draw = random.Random(seed)
    workers = [ScriptedWorker(f"w{n}", stop_at=draw.randrange(4)) for n in range(4)]
    workers[3].fail_with = draw.choice(WORKER_FAILURES)
    async with running(*workers) as rig:
        workflows = [await rig.start_workflow() for _ in range(5)]
        calls = [rig.submit(draw.choice(workflows), sampling=SAMPLING) for _ in range(20)]
        outcomes = [asyncio.create_task(outcome(call)) for call in calls]
        await rig.sees(lambda status: sum(worker.running for worker in status.workers) >= draw.randrange(20), "steps run")
        await disturb(rig, draw, calls, workflows)
        ended = await asyncio.gather(*outcomes)
        await rig.sees(lambda status: status.running_steps == 0, "no step is left")
        decisions = (await rig.status()).decisions
    for path in paths.values():
        assert path[-1].is_final
        assert all(after in NEXT_STATES[before] for before, after in itertools.pairwise(path))
    complete = [
        each for each in ended if isinstance(each, Answer) and each.finished[0].reason == types_pb2.FINISH_REASON_LENGTH
    ]
    assert all(answer.token_ids == answer_tokens(SAMPLING) for answer in complete)
    ends = [path[-1] for path in paths.values()]
    assert ends.count(StepState.FINISHED) >= len(complete)
    assert decisions["step_cancelled"] + decisions["step_failed"] <= len(ends) - ends.count(StepState.FINISHED)
