"""A gateway and a real worker: a flood of one tenant, and steps that nobody waits for."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.real_workers import SIZES, Real, real_workers
from tests.gateway.rig import PATIENCE_S, read, refused, running, step_request
from tests.polling import eventually

LONG = types_pb2.Sampling(max_tokens=300, ignore_eos=True, seed=5)


class Gate:
    """While it is closed, holds each batch until one is permitted. Knows whose sequences have been in a batch."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.permits = threading.Semaphore(0)
        self.workflows: list[str] = []  # in the order in which they were first in a batch


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, run = Gate(), TorchRunner.run

    def gated(self: TorchRunner, chunks: Sequence[Chunk]) -> list[int]:
        for chunk in chunks:
            if chunk.sequence.request.workflow not in gate.workflows:
                gate.workflows.append(chunk.sequence.request.workflow)
        while not gate.open.is_set() and not gate.permits.acquire(timeout=0.05):
            pass
        return run(self, chunks)

    monkeypatch.setattr(TorchRunner, "run", gated)
    yield gate
    gate.open.set()


def prompt(number: int) -> types_pb2.Prompt:
    return types_pb2.Prompt(text=chr(ord("a") + number) * 40)


def held(engine: Engine) -> tuple[int, int, int]:
    """Steps that run and wait, and the blocks that they hold."""
    return len(engine.scheduler.running), engine.scheduler.waiting, engine.cache.locked_blocks(Tier.GPU)


async def placed(worker: Real, gate: Gate, steps: int) -> None:
    """Waits until so many steps are at the worker, which looks at what has come between two batches."""

    async def are_there() -> bool:
        answer = asyncio.create_task(worker.server.thread.call(held))
        while not answer.done():  # the engine may begin another batch before it looks at what has come
            gate.permits.release()
            await asyncio.wait({answer}, timeout=0.05)
        running_steps, waiting, _ = answer.result()
        return running_steps + waiting == steps

    await eventually(are_there, PATIENCE_S, lambda: f"{steps} steps at the worker")


@pytest.mark.parametrize(("weights", "first"), [("", 5), ("small=3", 4)])
async def test_a_flood_of_one_tenant_leaves_another_its_share(tmp_path: Path, gate: Gate, weights: str, first: int) -> None:
    build(tmp_path, "llama", **SIZES)
    async with running() as rig, real_workers(rig, tmp_path, "a", max_running=1, tenant_weights=weights) as (worker,):
        flood = [await rig.start_workflow(workflow_id=f"flood-{number}", tenant="large") for number in range(10)]
        calls: list[Any] = [rig.submit(flood[0], prompt=prompt(0), sampling=LONG)]
        await placed(worker, gate, 1)
        calls += [rig.submit(each, prompt=prompt(number)) for number, each in enumerate(flood[1:], start=1)]
        await placed(worker, gate, 10)
        small = [await rig.start_workflow(workflow_id=f"small-{number}", tenant="small") for number in range(3)]
        calls += [rig.submit(each, prompt=prompt(number)) for number, each in enumerate(small)]
        await placed(worker, gate, 13)
        gate.open.set()
        await asyncio.gather(*map(read, calls))
        served = [workflow.partition("-")[0] for workflow in gate.workflows]
        assert served.count("flood") == 10
        assert max(index for index, name in enumerate(served) if name == "small") <= first + 1, served


@pytest.mark.parametrize("runs", [False, True], ids=["queued", "running"])
async def test_a_deadline_drops_a_step_wherever_it_is(tmp_path: Path, gate: Gate, runs: bool) -> None:
    build(tmp_path, "llama", **SIZES)
    async with running() as rig, real_workers(rig, tmp_path, "a", max_running=1) as (worker,):
        before, late = await rig.start_workflow(), await rig.start_workflow()
        calls = [] if runs else [rig.submit(before, prompt=prompt(0), sampling=LONG)]
        await placed(worker, gate, len(calls))
        async with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            await read(rig.stub.SubmitStep(step_request(late, prompt=prompt(1), sampling=LONG), timeout=0.5))
        await rig.sees(lambda status: status.running_steps == len(calls), "the gateway has let go of it")
        gate.open.set()
        for call in calls:
            assert len((await read(call)).token_ids) == LONG.max_tokens
        await eventually(lambda: _free(worker), PATIENCE_S, lambda: "the worker has let go of it")
        assert (late in gate.workflows) == runs
        assert len((await rig.run(before, prompt=prompt(2))).token_ids) == 4


async def _free(worker: Real) -> bool:
    return await worker.server.thread.call(held) == (0, 0, 0)
