"""A cluster whose workers send their output straight to clients, over wires that a test can cut."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pbkv_cluster.client import AsyncClient, AsyncWorkflow
from pbkv_cluster.gateway.decisions import Reason
from tests.gateway.real_workers import Real, real_workers
from tests.gateway.rig import PATIENCE_S, Rig, running
from tests.gateway.wire import BrokenWire
from tests.polling import eventually

PROMPT = "what comes next? " * 6
LONG: dict[str, Any] = {"agent": "a", "prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "temperature": 1.0, "seed": 7}


@asynccontextmanager
async def cluster(folder: Path, *names: str, **limits: int) -> AsyncIterator[tuple[Rig, Sequence[Real], list[BrokenWire]]]:
    """A gateway, real workers, and the wires by which clients reach the output of each."""
    wires: list[BrokenWire] = []

    async def through_a_wire(address: str) -> str:
        wires.append(wire := BrokenWire(address))
        await wire.open()
        return wire.address

    try:
        async with (
            running(limits=limits) as rig,
            real_workers(rig, folder, *(names or ("a",)), reached_by=through_a_wire) as workers,
        ):
            yield rig, workers, wires
    finally:
        for wire in wires:
            wire.cut()


async def direct_steps(rig: Rig) -> int:
    return (await rig.status()).decisions[Reason.STEP_DIRECT]


async def connected(rig: Rig, client: AsyncClient, tenant: str = "") -> AsyncWorkflow:
    """A workflow of a client whose receiver is connected to the worker on which its steps run."""
    workflow = await client.start_workflow(tenant=tenant)

    async def is_direct() -> bool:
        before = await direct_steps(rig)
        await workflow.run(agent="a", prompt=PROMPT, max_tokens=1)
        return await direct_steps(rig) > before

    await eventually(is_direct, PATIENCE_S)
    return workflow
